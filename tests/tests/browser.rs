//! The dashboard in a real Chromium: what a person sees, and what the browser has to say of the page.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "what fails in a test may end it, and says so there")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use url::Url;
use vm_agent_schemas::api::{AgentView, Approval, ControllerStatus, Document, FileState, Kind, List, RevisionView};
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::fleet::{Diagnostic, DriftPolicy, Place, PowerState, Until};
use vm_agent_schemas::ids::{Digest, OverrideId, Revision};
use vm_agent_schemas::intent::{Change, Override, Pause};
use vm_agent_schemas::plan::{Cost, Drift, DriftClass, Resource, Rest, WaitsFor};
use vm_agent_schemas::wire::{ServiceReport, ServiceState};
use vm_agent_tests::e2e::{Fleet, LIMIT};

/// Set to 1 where there is a browser, so that this test can't leave itself out there.
const MUST_RUN: &str = "VM_AGENT_TEST_BROWSER";

const THREE: &str = "defaults: {driver: local}\nagents: {anna: {}, bert: {}, cleo: {}}\n";

/// [`THREE`] without one, and with one that no driver here can make.
const CHANGED: &str = "defaults: {driver: local}\nagents: {anna: {}, bert: {}, dora: {driver: incus}}\n";

/// A word that is none, after letters that are as wide as the font has them.
const TYPO: &str = "defaults: {driver: local}\nagents:\n  anna: {env: {WHERE: 東京}, powr: stopped}\n";
const MENDED: &str = "defaults: {driver: local}\nagents:\n  anna: {env: {WHERE: 東京}, power: stopped}\n";
/// [`MENDED`] with what a person has to see first.
const REACHING: &str = "defaults: {driver: local}\nagents:\n  anna: {secrets: {KEY: {env: HOME}}, power: stopped}\n";

/// The cells of the table, row by row, each as the texts in it.
const ROWS: &str = "[...document.querySelectorAll('#agents tbody tr')]
    .map((row) => [...row.cells].map((cell) => cell.innerText))";

/// The rows of the history, newest first.
const HISTORY: &str = "document.querySelector('#history tbody').rows";

/// How far the caret under a diagnostic's line stands from the word that it is meant for: to the right,
/// and down.
const CARET: &str = "(() => {
    const line = document.querySelector('#diagnostics pre code').firstChild;
    const word = document.createRange();
    word.setStart(line, line.data.indexOf('powr'));
    word.setEnd(line, line.data.indexOf('powr') + 1);
    const [meant, caret] = [word, document.querySelector('.caret')].map((it) => it.getBoundingClientRect());
    return [caret.left - meant.left, caret.top - meant.top];
})()";

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
    browser.get("getSelection().selectAllChildren(document.querySelector('#agents tbody th'))").await;
    fleet.ok(&["stop", "bert", "--reason", "to be seen"]);
    let stopped = format!("{ROWS}.find(([name, , sync, health]) => name.startsWith('bert') && health === 'Stopped')");
    let bert = browser.until(&stopped).await;
    assert_eq!(browser.get("getSelection().toString()").await, "anna", "what a person selects stays so");
    let text = bert[0].as_str().unwrap();
    assert!(text.starts_with("bert Overridden\npower: stopped (covers running) by "), "{text}");
    assert!(text.ends_with(" left: to be seen"), "{text}");
    let left = browser.get("document.querySelector('time[data-ticks=left]').innerText").await;
    browser.until(&format!("document.querySelector('time[data-ticks=left]').innerText !== {left}")).await;
    fleet.ok(&["override", "clear", "bert"]);
    browser.until(&format!("{well} && !document.querySelector('#agents').innerText.includes('Overridden')")).await;

    fleet.write(CHANGED);
    fleet.ok(&["apply", "--no-wait"]);
    let dora = browser.until(&format!("{ROWS}.find(([name]) => name === 'dora')")).await;
    assert_eq!(dora[5], "driver incus, which this controller does not have", "{dora}");
    let cleo =
        browser.until(&format!("{ROWS}.find(([name, , sync]) => name.startsWith('cleo') && sync !== 'Synced')")).await;
    assert_eq!(cleo[4], "agent: present → absent (deletes the machine and its data)", "{cleo}");
    let asked = browser.until("document.querySelector('#approvals tbody tr')?.innerText").await;
    let (about, command) = (asked.as_str().unwrap(), cleo[5].as_str().unwrap().strip_prefix("an approval: ").unwrap());
    assert!(about.starts_with("cleo") && about.ends_with(command), "{about} and {command}");
    fleet.ok(&command.split(' ').skip(1).collect::<Vec<_>>());
    browser.until("document.getElementById('approvals-section').hidden").await;
    assert_eq!(browser.get("window.untouched").await, true);

    browser.pictures("fleet").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    let requests = browser.requests(&origin).await;
    assert!(!requests.is_empty() && requests.iter().all(|url| url.starts_with(&origin)), "{requests:?}");

    browser.page.find(Locator::Css("#sign-out")).await.unwrap().click().await.unwrap();
    browser.until("document.getElementById('dashboard').hidden").await;
    assert_eq!(browser.get("sessionStorage.length").await, 0);
    browser.close().await;
    fleet.finish();
}

#[tokio::test]
async fn a_change_of_the_fleet_file_shows_whether_it_is_refused_held_in_force_or_taken_back() {
    let fleet = Fleet::new("defaults: {driver: local}\nagents: {anna: {}}\n");
    let Some(browser) = Browser::open(fleet.path()).await else { return };
    fleet.up();
    browser.show(&fleet).await;
    assert_eq!(browser.file("In force").await, "In force: the file on the disk is in force");

    fleet.write(TYPO);
    let refused = browser.file("Invalid").await;
    assert_eq!(refused, "Invalid: what is on the disk has 1 error; the accepted file stays in force");
    let shown = browser.get("document.getElementById('diagnostics').innerText").await;
    let shown = shown.as_str().unwrap();
    assert!(shown.contains("fleet.yaml:4:28 agents.anna.powr: "), "{shown}");
    assert!(shown.contains("4 |   anna: {env: {WHERE: 東京}, powr: stopped}"), "{shown}");
    assert!(shown.contains("did you mean `power`?"), "{shown}");
    let caret = browser.get(CARET).await;
    assert!(caret[0].as_f64().unwrap().abs() < 1.0 && caret[1].as_f64().unwrap() > 1.0, "{caret}");
    browser.pictures("refused").await;

    fleet.write(MENDED);
    browser.file("In force").await;
    assert_eq!(browser.get("document.getElementById('diagnostics').hidden").await, true);
    browser.until(&format!("{ROWS}.find(([, , , health]) => health === 'Stopped')")).await;

    fleet.write(REACHING);
    let held = browser.file("Held").await;
    assert!(held.contains("agent `anna` gets the secret KEY from the controller's variable HOME"), "{held}");
    let command = browser.until("document.querySelector('#approvals .command')?.innerText").await;
    assert_eq!(browser.get("document.querySelector('#approvals tbody th').innerText").await, "the file");
    fleet.ok(&command.as_str().unwrap().split(' ').skip(1).collect::<Vec<_>>());
    browser.file("In force").await;

    browser.until(&format!("{HISTORY}.length === 3 && {HISTORY}[2].innerText.endsWith('vm-agent rollback 1')")).await;
    fleet.ok(&["rollback", "1"]);
    let back = browser.file("Rolled back").await;
    assert!(back.contains("a person went back to an earlier file"), "{back}");
    let newest = browser.until(&format!("{HISTORY}.length === 4 && {HISTORY}[0].innerText")).await;
    assert!(newest.as_str().unwrap().contains("back to revision 1"), "{newest}");
    let events = browser.get("document.getElementById('events').innerText").await;
    for kind in ["File rejected", "File held", "Fleet rolled back"] {
        assert!(events.as_str().unwrap().contains(kind), "{kind} is not among {events}");
    }
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
    fleet.finish();
}

#[tokio::test]
async fn everything_that_the_api_may_say_is_told_in_words_and_is_never_markup() {
    let fleet = Fleet::new("defaults: {driver: local}\nagents: {anna: {}}\n");
    let Some(browser) = Browser::open(fleet.path()).await else { return };
    fleet.up();
    let mut hostile = Hostile::default();
    browser.pretend(&answers(&fleet, &mut hostile)).await;
    browser.show(&fleet).await;
    let text = browser.get("document.getElementById('dashboard').innerText").await;
    let text = text.as_str().unwrap();
    let wanted = hostile.0.iter().map(String::as_str).chain(SENTENCES.iter().copied());
    let missing: Vec<_> = wanted.filter(|it| !text.contains(it)).collect();
    assert!(missing.is_empty(), "{missing:#?} not in {text}");
    assert_eq!(browser.get("document.querySelectorAll('#dashboard :is(img, script, a)').length").await, 0);
    assert_eq!(browser.get("window.broken").await, Value::Null);
    browser.pictures("everything").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
    fleet.finish();
}

/// What the page makes of what [`answers`] say, beside the texts of others.
const SENTENCES: &[&str] = &[
    "2 d 2 h left",
    "Invalid: what is on the disk has 1 error",
    "anna Overridden Paused\npower: stopped (covers running) by ",
    "until cleared",
    "it is idle, and starts when there is work",
    "memory: 1025M → 8G (needs a stop) left as it is: drift says warn",
    "/code at /src, writable",
    "the next window for disruptive steps, at ",
    ", in 3 h",
    "a window for disruptive steps, and none opens any more",
    "room on the host: it needs 8G of memory, and 1.5G is free",
    "room on the host: it needs 4 of processors, and 1 is free",
    "agent bert, which is not done with its tasks yet",
    "agent bert, which is not started yet",
    "it runs again in 3 h",
    "coder failing, restarted 2 times: ",
    "vm-agent approve ",
    "vm-agent rollback 41",
    "File rejected",
];

/// Texts of others, each as bad as it may be.
#[derive(Default)]
struct Hostile(Vec<String>);

impl Hostile {
    fn text(&mut self, place: &str) -> String {
        self.0.push(format!("<img src=x onerror='window.broken=1'><script>window.broken=1</script> in {place}"));
        self.0[self.0.len() - 1].clone()
    }
}

/// What a controller may say, by path.
fn answers(fleet: &Fleet, hostile: &mut Hostile) -> Value {
    let at = Timestamp::now();
    let approval = Approval { id: Digest::of(b"shown"), agent: None, what: hostile.text("what would happen") };
    let revision = RevisionView {
        revision: Revision(41),
        at,
        author: hostile.text("the revision's author"),
        current: false,
        summary: hostile.text("the summary"),
        source: None,
    };
    json!({
        "/status": document(status(fleet.status(), hostile)),
        "/agents": document(List { items: vec![agent(fleet.agent("anna"), hostile)] }),
        "/approvals": document(List { items: vec![approval] }),
        "/fleet/revisions": document(List { items: vec![revision] }),
        "/events": Event { seq: 1, at, kind: EventKind::FileRejected, agent: None, message: hostile.text("the event") },
    })
}

fn status(mut status: ControllerStatus, hostile: &mut Hostile) -> ControllerStatus {
    let now = Timestamp::now();
    status.paused = Some(Pause {
        author: hostile.text("the author of the pause"),
        reason: Some(hostile.text("the reason of the pause")),
        created_at: now,
        expires_at: Some(now + Duration::from_secs(2 * 86_400 + 2 * 3600 + 600)),
    });
    status.conditions[0].message = hostile.text("the condition");
    status.drivers[0].answering = false;
    status.drivers[0].problem = Some(hostile.text("the driver's problem"));
    status.file.state = FileState::Invalid;
    status.file.author = Some(hostile.text("the file's author"));
    status.file.roots = vec![hostile.text("the root").into()];
    status.file.diagnostics = vec![Diagnostic {
        file: hostile.text("the file's name"),
        place: Some(Place { line: 7, column: 12 }),
        path: hostile.text("the path"),
        message: hostile.text("the diagnostic"),
        hint: Some(hostile.text("the hint")),
        excerpt: Some(hostile.text("the line")),
    }];
    status
}

fn agent(mut agent: AgentView, hostile: &mut Hostile) -> AgentView {
    agent.paused = true;
    agent.rests = Some(Rest::Idle);
    agent.overrides = vec![Override {
        id: OverrideId::generate(),
        agent: agent.name.clone(),
        change: Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running },
        author: hostile.text("the override's author"),
        reason: Some(hostile.text("the override's reason")),
        created_at: Timestamp::now(),
        expires_at: None,
    }];
    agent.drift = drift(hostile);
    agent.waits_for = waits(hostile);
    let report = ServiceReport {
        state: ServiceState::Failing,
        restarts: 2,
        cpu_percent: 0.0,
        problem: Some(hostile.text("the service's problem")),
    };
    let health = json!({
        "cpus": 1, "load": 0, "memoryTotal": 1, "memoryUsed": 1, "diskTotal": 1, "diskUsed": 1, "uptimeSecs": 1,
        "runtimeMemory": 1, "tasks": 0, "streams": 0, "services": {"coder": report},
    });
    agent.session.as_mut().unwrap().health = Some(serde_json::from_value(health).unwrap());
    agent
}

fn drift(hostile: &mut Hostile) -> Vec<Drift> {
    let warned = |class, path: &str, observed, wanted| Drift {
        class,
        path: path.to_owned(),
        wanted,
        observed,
        cost: Cost::Restart,
        policy: DriftPolicy::Warn,
    };
    let mounts = |source: &str| json!({"/src": {"source": source, "writable": true}});
    let problems = json!([hostile.text("the problem")]);
    vec![
        warned(DriftClass::Memory, "memory", json!(1025u64 << 20), json!(8u64 << 30)),
        warned(DriftClass::Mounts, "mounts", mounts(&hostile.text("the mount")), mounts("/code")),
        warned(DriftClass::Provisioning, "provisioning", problems, json!("without problems")),
        warned(DriftClass::Task, &hostile.text("the drift's path"), json!({"a": hostile.text("the value")}), json!(1)),
    ]
}

fn waits(hostile: &mut Hostile) -> Vec<WaitsFor> {
    let until = Timestamp::now() + Duration::from_secs(3 * 3600 + 600);
    vec![
        WaitsFor::Window { opens: Some(until) },
        WaitsFor::Window { opens: None },
        WaitsFor::Capacity { resource: Resource::Memory, needs: 8 << 30, free: 3 << 29 },
        WaitsFor::Capacity { resource: Resource::Cpus, needs: 4, free: 1 },
        WaitsFor::Dependency { agent: "bert".parse().unwrap(), until: Until::Completed },
        WaitsFor::Dependency { agent: "bert".parse().unwrap(), until: Until::Started },
        WaitsFor::Unsupported { what: hostile.text("what can't be done") },
        WaitsFor::Problem { what: hostile.text("what does not work") },
        WaitsFor::Backoff { until, failures: 1, last: hostile.text("the last failure") },
        WaitsFor::TaskFailed { task: "test".parse().unwrap(), outcome: hostile.text("the outcome"), next: Some(until) },
    ]
}

fn document<T: Serialize + Kind>(content: T) -> Value {
    serde_json::to_value(Document::from(content)).unwrap()
}

/// Starts a chromedriver, and says on which port it listens. It takes a free port of IPv4 and wants the same of
/// IPv6, where another may be quicker: then it ends.
fn start_driver(home: &Path) -> std::io::Result<(Child, u16, impl Sized)> {
    for _ in 0..10 {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("HOME", home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn()?;
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            line.unwrap().rsplit_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok()
        });
        match port {
            // As long as somebody reads, it may write.
            Some(port) => return Ok((driver, port, lines)),
            None => drop(driver.wait()?),
        }
    }
    Err(std::io::Error::other("it finds no port to listen on"))
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
        let (driver, port, _lines) = match start_driver(home) {
            Ok(started) => started,
            Err(error) => {
                assert!(std::env::var_os(MUST_RUN).is_none_or(|it| it != "1"), "chromedriver can't be run: {error}");
                eprintln!("left out: chromedriver can't be run ({error}); install Chromium and chromedriver");
                return None;
            }
        };
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

    /// Opens the fleet's dashboard with a token, and waits until it shows something.
    async fn show(&self, fleet: &Fleet) {
        self.page.goto(&format!("http://{}/", fleet.status().addresses.dashboard)).await.unwrap();
        self.until("!document.getElementById('sign-in').hidden").await;
        self.sign_in(fleet.ok(&["token", "create", "browser"]).trim()).await;
        self.until("!document.getElementById('dashboard').hidden && document.querySelector('#events li')").await;
    }

    /// What the page says of the file, as soon as that begins so.
    async fn file(&self, state: &str) -> String {
        let line = "document.getElementById('file-state').innerText";
        self.until(&format!("{line}.startsWith('{state}')")).await;
        self.get(line).await.as_str().unwrap().to_owned()
    }

    /// Has the page hear these answers, by path, instead of the controller's. The page itself, and what
    /// it may do, stays the controller's.
    async fn pretend(&self, answers: &Value) {
        let script = "const answers = ANSWERS;
            const encoded = (text) => new TextEncoder().encode(text);
            window.fetch = async (path) => {
                const answer = answers[path.split('?')[0]];
                if (!path.startsWith('/events')) return new Response(JSON.stringify(answer));
                const text = `id: 1\\ndata: ${JSON.stringify(answer)}\\n\\n`;
                return new Response(new ReadableStream({ start: (stream) => stream.enqueue(encoded(text)) }));
            };"
        .replace("ANSWERS", &answers.to_string());
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": script})).await;
    }

    async fn sign_in(&self, token: &str) {
        let field = self.page.find(Locator::Css("#token")).await.unwrap();
        field.send_keys(token).await.unwrap();
        self.page.find(Locator::Css("#sign-in-form button")).await.unwrap().click().await.unwrap();
    }

    /// The page as light, dark and on a phone, where it may be scrolled down but not sideways. The
    /// pictures are for people.
    async fn pictures(&self, of: &str) {
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
            std::fs::write(folder.join(format!("dashboard-{of}-{name}.png")), bytes).unwrap();
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
