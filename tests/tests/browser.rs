//! The dashboard in a real Chromium: what a person sees, and what the browser has to say of the page.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "what fails in a test may end it, and says so there")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::Url;
use vm_agent_tests::e2e::{Fleet, LIMIT};

/// Set to 1 where there is a browser, so that this test can't leave itself out there.
const MUST_RUN: &str = "VM_AGENT_TEST_BROWSER";

const THREE: &str = "defaults: {driver: local}\nagents: {anna: {}, bert: {}, cleo: {}}\n";

/// [`THREE`] without one, and with one that no driver here can make.
const CHANGED: &str = "defaults: {driver: local}\nagents: {anna: {}, bert: {}, dora: {driver: incus}}\n";

/// The cells of the table, row by row, each as the texts in it.
const ROWS: &str = "[...document.querySelectorAll('#agents tbody tr')]
    .map((row) => [...row.cells].map((cell) => cell.innerText))";

#[tokio::test]
async fn the_dashboard_shows_the_fleet_as_it_is_to_whoever_has_a_token() {
    let fleet = Fleet::new(THREE);
    let Some(browser) = Browser::open(fleet.path()).await else { return };
    fleet.up();
    let origin = format!("http://{}/", fleet.status().addresses.dashboard);
    browser.page.goto(&origin).await.unwrap();

    browser.until("!document.getElementById('sign-in').hidden").await;
    browser.sign_in("no-such-token").await;
    let problem = browser.until("document.getElementById('sign-in-problem').textContent").await;
    assert!(problem.as_str().unwrap().contains("token"), "{problem}");
    assert_eq!(browser.get("document.getElementById('dashboard').hidden").await, true);
    let complaints = browser.complaints().await;
    assert!(complaints.iter().all(|text| text.contains("401")), "{complaints:?}");

    let token = fleet.ok(&["token", "create", "browser"]);
    browser.sign_in(token.trim()).await;
    let well = format!("{ROWS}.filter(([, , sync, health]) => sync === 'Synced' && health === 'Healthy').length === 3");
    browser.until(&well).await;
    let names = browser.get(&format!("{ROWS}.map(([name]) => name)")).await;
    assert_eq!(names, json!(["anna", "bert", "cleo"]));
    assert!(!browser.get("location.href").await.as_str().unwrap().contains(token.trim()), "a URL holds no secret");

    // From here on nobody touches the page: what happens shows by itself.
    browser.get("window.untouched = true").await;
    fleet.ok(&["stop", "bert", "--reason", "to be seen"]);
    let stopped = format!("{ROWS}.find(([name, , sync, health]) => name.startsWith('bert') && health === 'Stopped')");
    let bert = browser.until(&stopped).await;
    assert!(bert[0].as_str().unwrap().contains("Overridden: power by "), "{bert}");
    assert!(bert[0].as_str().unwrap().contains("to be seen"), "{bert}");

    fleet.write(CHANGED);
    fleet.ok(&["apply", "--no-wait"]);
    let dora = browser.until(&format!("{ROWS}.find(([name]) => name === 'dora')")).await;
    assert_eq!(dora[5], "driver incus, which this controller does not have", "{dora}");
    let cleo =
        browser.until(&format!("{ROWS}.find(([name, , sync]) => name.startsWith('cleo') && sync !== 'Synced')")).await;
    assert_eq!(cleo[4], "agent: present → absent (deletes the machine and its data)", "{cleo}");
    assert!(cleo[5].as_str().unwrap().starts_with("an approval: vm-agent approve "), "{cleo}");
    assert_eq!(browser.get("window.untouched").await, true);

    browser.pictures().await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    let requests = browser.requests(&origin).await;
    assert!(!requests.is_empty() && requests.iter().all(|url| url.starts_with(&origin)), "{requests:?}");

    browser.page.find(Locator::Css("#sign-out")).await.unwrap().click().await.unwrap();
    browser.until("document.getElementById('dashboard').hidden").await;
    assert_eq!(browser.get("sessionStorage.length").await, 0);
    browser.close().await;
    fleet.finish();
}

/// A Chromium of this test's own, driven by a chromedriver.
struct Browser {
    page: Client,
    driver: Child,
}

impl Browser {
    /// A browser that keeps everything in `home`, by which its processes are found and ended with the
    /// fleet there. None where there is none.
    async fn open(home: &Path) -> Option<Self> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("HOME", home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = match command.spawn() {
            Ok(driver) => driver,
            Err(error) => {
                assert!(std::env::var_os(MUST_RUN).is_none_or(|it| it != "1"), "chromedriver can't be run: {error}");
                eprintln!("left out: chromedriver can't be run ({error}); install Chromium and chromedriver");
                return None;
            }
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port: u16 = lines
            .find_map(|line| {
                line.unwrap().rsplit_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok()
            })
            .expect("chromedriver says where it listens");
        let profile = home.join("browser");
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // Shared memory is small in containers.
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "timeouts": {"script": LIMIT.as_millis()},
        });
        let capabilities: Capabilities = serde_json::from_value(wanted).unwrap();
        let page = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromedriver starts a Chromium");
        Some(Self { page, driver })
    }

    /// What an expression comes to in the page.
    async fn get(&self, expression: &str) -> Value {
        self.page.execute(&format!("return {expression}"), Vec::new()).await.unwrap()
    }

    /// What an expression comes to as soon as that counts as true. The page itself tells of its changes.
    async fn until(&self, expression: &str) -> Value {
        let script = "const done = arguments[arguments.length - 1];
            const watch = new MutationObserver(look);
            function look() {
                const found = EXPRESSION;
                if (found) { watch.disconnect(); done(found); }
            }
            watch.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
            look();"
            .replace("EXPRESSION", expression);
        match self.page.execute_async(&script, Vec::new()).await {
            Ok(found) => found,
            Err(error) => {
                let text = self.get("document.body.innerText").await;
                panic!("waited in vain for {expression} ({error}); the page says: {text}");
            }
        }
    }

    async fn sign_in(&self, token: &str) {
        let field = self.page.find(Locator::Css("#token")).await.unwrap();
        field.send_keys(token).await.unwrap();
        self.page.find(Locator::Css("#sign-in-form button")).await.unwrap().click().await.unwrap();
    }

    /// The page as light, dark and on a phone, where it may be scrolled down but not sideways. The
    /// pictures are for people.
    async fn pictures(&self) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (name, scheme, width) in [("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)] {
            let feature = json!({"name": "prefers-color-scheme", "value": scheme});
            self.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]})).await;
            let screen = json!({"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500});
            self.devtools("Emulation.setDeviceMetricsOverride", screen).await;
            let widths = self.get("[document.documentElement.scrollWidth, window.innerWidth]").await;
            assert!(widths[0].as_u64() <= widths[1].as_u64(), "{name}: {widths} is content and window");
            assert_eq!(widths[1], width);
            let whole = json!({"captureBeyondViewport": true});
            let picture = self.devtools("Page.captureScreenshot", whole).await;
            let bytes = base64(picture["data"].as_str().unwrap());
            std::fs::write(folder.join(format!("dashboard-{name}.png")), bytes).unwrap();
        }
    }

    /// What the browser holds against the page since this was last asked.
    async fn complaints(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        entries.iter().map(|entry| format!("{}: {}", entry["level"], entry["message"])).collect()
    }

    /// The URL of each request that was made for a document of this origin.
    async fn requests(&self, origin: &str) -> Vec<String> {
        let entries = self.log("performance").await.into_iter();
        let messages = entries.map(|entry| serde_json::from_str::<Value>(entry["message"].as_str().unwrap()).unwrap());
        let sent = messages.filter(|it| it["message"]["method"] == "Network.requestWillBeSent");
        let of_page = sent.filter(|it| it["message"]["params"]["documentURL"].as_str().unwrap().starts_with(origin));
        of_page.map(|it| it["message"]["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.ask("se/log", json!({"type": kind})).await;
        entries.as_array().expect("a log is a list").clone()
    }

    async fn devtools(&self, command: &str, params: Value) -> Value {
        self.ask("goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    async fn ask(&self, path: &'static str, body: Value) -> Value {
        self.page.issue_cmd(Ask { path, body }).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn close(mut self) {
        self.page.close().await.unwrap();
        self.driver.kill().unwrap();
        self.driver.wait().unwrap();
    }
}

/// A command of chromedriver's own.
#[derive(Debug)]
struct Ask {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Ask {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

fn base64(text: &str) -> Vec<u8> {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.decode(text).expect("a picture comes as base64")
}
