//! cloud-init: what user-data asks for is followed, as far as tests need it, and how that went is told truthfully.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{complain, say};
use crate::home::{read_json, write_json};
use crate::instance::Order;

/// The argument of the process that follows user-data.
pub(super) const FOLLOW: &str = "double-follow";
/// Where user-data and meta-data lie.
const SEED: &str = "/var/lib/cloud/seed/nocloud";
/// Of the instance that the machine is.
const INSTANCE: &str = "/var/lib/cloud/instance";
const STATUS: &str = "/run/cloud-init/status.json";
const RESULT: &str = "/run/cloud-init/result.json";
const SOURCE: &str = "DataSourceNoCloud [seed=/dev/sr0]";
/// What every command of it has.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the first process hands to the process that follows user-data.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Plan {
    pause: u64,
    missing_packages: Vec<String>,
}

/// Says that cloud-init has begun, before anybody can ask.
pub(super) fn begin(order: &Order) -> io::Result<()> {
    fs::create_dir_all("/run/cloud-init")?;
    let id = instance_id();
    let folder = format!("/var/lib/cloud/instances/{id}");
    fs::create_dir_all(format!("{folder}/sem"))?;
    fs::create_dir_all("/var/lib/cloud/data")?;
    drop(fs::remove_file(INSTANCE));
    symlink(&folder, INSTANCE)?;
    drop(fs::remove_file(format!("{INSTANCE}/boot-finished")));
    fs::write("/var/lib/cloud/data/instance-id", format!("{id}\n"))?;
    let plan = Plan { pause: order.cloud_init, missing_packages: order.missing_packages.clone() };
    write_json(Path::new("/run/cloud-init/plan.json"), &plan)?;
    let mut progress = Progress::default();
    progress.enter("init-local")
}

fn instance_id() -> String {
    let text = fs::read_to_string(format!("{SEED}/meta-data")).unwrap_or_default();
    let data: Value = serde_yaml::from_str(&text).unwrap_or_default();
    data["instance-id"].as_str().unwrap_or("nocloud").to_owned()
}

/// How far it is, and what went wrong on the way.
#[derive(Debug, Default)]
struct Progress {
    stage: Option<&'static str>,
    errors: BTreeMap<&'static str, Vec<String>>,
    recoverable: BTreeMap<&'static str, Vec<String>>,
}

impl Progress {
    fn enter(&mut self, stage: &'static str) -> io::Result<()> {
        self.stage = Some(stage);
        self.write()
    }

    fn error(&mut self, error: String) {
        self.errors.entry(self.stage.unwrap_or("init")).or_default().push(error);
    }

    fn write(&self) -> io::Result<()> {
        let mut all = Map::new();
        all.insert("datasource".to_owned(), json!(SOURCE));
        for stage in ["init", "init-local", "modules-config", "modules-final"] {
            let of = |errors: &BTreeMap<&str, Vec<String>>| errors.get(stage).cloned().unwrap_or_default();
            let warnings = of(&self.recoverable);
            let recoverable = if warnings.is_empty() { json!({}) } else { json!({ "WARNING": warnings }) };
            let times = json!({ "errors": of(&self.errors), "finished": null, "recoverable_errors": recoverable, "start": null });
            all.insert(stage.to_owned(), times);
        }
        all.insert("stage".to_owned(), json!(self.stage));
        write_json(Path::new(STATUS), &json!({ "v1": all }))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.stage = None;
        self.write()?;
        let errors: Vec<&String> = self.errors.values().flatten().collect();
        write_json(Path::new(RESULT), &json!({ "v1": { "datasource": SOURCE, "errors": errors } }))
    }
}

/// The program `cloud-init`.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.first() {
        Some(&FOLLOW) => match follow() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&format!("cloud-init: {error}\n"));
                ExitCode::FAILURE
            }
        },
        Some(&"status") => status(
            words.contains(&"--wait"),
            words.contains(&"json") || words.contains(&"--format=json"),
            words.contains(&"--long"),
        ),
        Some(&"--version") => say("/usr/bin/cloud-init 25.1.4-0ubuntu0~24.04.1\n"),
        _ => {
            complain("usage: cloud-init status [--wait] [--format json]\n");
            ExitCode::from(2)
        }
    }
}

fn status(wait: bool, as_json: bool, long: bool) -> ExitCode {
    while wait && !Path::new(RESULT).exists() {
        thread::sleep(Duration::from_millis(20));
    }
    let all: Value = read_json(Path::new(STATUS));
    let stages = ["init", "init-local", "modules-config", "modules-final"];
    let of = |key: &str| stages.iter().map(|stage| all["v1"][stage][key].clone()).collect::<Vec<_>>();
    let errors: Vec<Value> = of("errors").iter().filter_map(Value::as_array).flatten().cloned().collect();
    let warnings: Vec<Value> =
        of("recoverable_errors").iter().filter_map(|all| all["WARNING"].as_array()).flatten().cloned().collect();
    let done = Path::new(RESULT).exists();
    let (state, extended, code) = match (done, errors.is_empty(), warnings.is_empty()) {
        (false, ..) => ("running", "running", 0),
        (true, false, _) => ("error", "error - done", 1),
        (true, true, false) => ("done", "degraded done", 2),
        (true, true, true) => ("done", "done", 0),
    };
    let recoverable = if warnings.is_empty() { json!({}) } else { json!({ "WARNING": warnings }) };
    let told = if as_json {
        let mut told = json!({
            "boot_status_code": "enabled-by-generator", "datasource": "nocloud", "detail": SOURCE, "errors": errors,
            "extended_status": extended, "last_update": jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S %z").to_string(),
            "recoverable_errors": recoverable, "schemas": { "1": { "errors": errors } }, "stage": all["v1"]["stage"], "status": state,
        });
        for stage in stages {
            told[stage] = all["v1"][stage].clone();
        }
        format!("{told:#}\n")
    } else if long {
        format!(
            "status: {state}\nextended_status: {extended}\nboot_status_code: enabled-by-generator\ndetail: {SOURCE}\nerrors: {}\n",
            Value::from(errors)
        )
    } else {
        format!("status: {state}\n")
    };
    say(&told);
    ExitCode::from(code)
}

/// Follows user-data to its end.
fn follow() -> io::Result<()> {
    let plan: Plan = read_json(Path::new("/run/cloud-init/plan.json"));
    let mut progress = Progress::default();
    progress.enter("init")?;
    let text = fs::read_to_string(format!("{SEED}/user-data")).unwrap_or_default();
    let data: Value = serde_yaml::from_str(&text).unwrap_or_default();
    // What is to be done once for each instance id has been done if its mark is there.
    let mark = format!("{INSTANCE}/sem/config_scripts_user");
    let first = !Path::new(&mark).exists();
    attempt(&mut progress, "bootcmd", bootcmd(&data));
    if first {
        attempt(&mut progress, "write_files", write_files(&data));
        attempt(&mut progress, "set_hostname", hostname(&data));
        attempt(&mut progress, "users_groups", users(&data));
        progress.enter("modules-config")?;
        thread::sleep(Duration::from_millis(plan.pause));
        progress.enter("modules-final")?;
        attempt(&mut progress, "package_update_upgrade_install", packages(&data, &plan));
        attempt(&mut progress, "scripts_user", runcmd(&data));
        fs::write(&mark, "")?;
    }
    progress.finish()?;
    fs::write(format!("{INSTANCE}/boot-finished"), "0.00 - finished\n")
}

fn attempt(progress: &mut Progress, module: &str, done: Result<(), Trouble>) {
    match done {
        Ok(()) => {}
        Err(Trouble::Failed(error)) => progress.error(format!("('{module}', {error})")),
        Err(Trouble::Shape(error)) => {
            let stage = progress.stage.unwrap_or("init");
            progress.recoverable.entry(stage).or_default().push(error);
        }
    }
    drop(progress.write());
}

/// What went wrong in a module.
enum Trouble {
    /// It failed.
    Failed(String),
    /// It was passed over, as what is there is not what it should be.
    Shape(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("OSError('{error}')"))
    }
}

fn list<'a>(data: &'a Value, key: &str) -> Result<&'a [Value], Trouble> {
    match &data[key] {
        Value::Null => Ok(&[]),
        Value::Array(list) => Ok(list),
        _ => Err(Trouble::Shape(format!("cloud-config failed schema validation! {key}: is not of type 'array'"))),
    }
}

/// A scalar as text, whatever YAML took it for.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The lines of a script that runs these commands: lists are words, texts are lines.
fn script(commands: &[Value]) -> String {
    let quoted = |word: &Value| format!("'{}'", text(word).replace('\'', "'\\''"));
    let line = |command: &Value| match command {
        Value::Array(words) => words.iter().map(quoted).collect::<Vec<_>>().join(" "),
        other => text(other),
    };
    let lines: Vec<String> = commands.iter().filter(|command| !command.is_null()).map(line).collect();
    format!("#!/bin/sh\n{}\n", lines.join("\n"))
}

fn run(path: &str) -> io::Result<bool> {
    let mut command = Command::new("/bin/sh");
    command.arg(path).current_dir("/").env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    Ok(command.stdin(Stdio::null()).status()?.success())
}

fn bootcmd(data: &Value) -> Result<(), Trouble> {
    let commands = list(data, "bootcmd")?;
    if commands.is_empty() {
        return Ok(());
    }
    let path = "/run/cloud-init/bootcmd.sh";
    fs::write(path, script(commands))?;
    match run(path)? {
        true => Ok(()),
        false => Err(Trouble::Failed("ProcessExecutionError(\"Unexpected error while running command.\")".to_owned())),
    }
}

fn runcmd(data: &Value) -> Result<(), Trouble> {
    let commands = list(data, "runcmd")?;
    if commands.is_empty() {
        return Ok(());
    }
    let folder = format!("{INSTANCE}/scripts");
    fs::create_dir_all(&folder)?;
    let path = format!("{folder}/runcmd");
    fs::write(&path, script(commands))?;
    fs::set_permissions(&path, Permissions::from_mode(0o700))?;
    // As in the real one it is the last command that decides.
    match run(&path)? {
        true => Ok(()),
        false => {
            Err(Trouble::Failed("RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted commands')".to_owned()))
        }
    }
}

fn write_files(data: &Value) -> Result<(), Trouble> {
    for file in list(data, "write_files")? {
        let Some(path) = file["path"].as_str().map(Path::new) else {
            return Err(Trouble::Shape("write_files: an entry has no path".to_owned()));
        };
        let content = match &file["content"] {
            Value::Null => String::new(),
            content => text(content),
        };
        let content = match file["encoding"].as_str().unwrap_or_default() {
            "b64" | "base64" => BASE64_STANDARD
                .decode(content.split_whitespace().collect::<String>())
                .map_err(|error| Trouble::Failed(format!("ValueError('{error}')")))?,
            _ => content.into_bytes(),
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let append = file["append"] == Value::Bool(true);
        let mut opened = OpenOptions::new().create(true).append(append).write(true).truncate(!append).open(path)?;
        opened.write_all(&content)?;
        let mode = u32::from_str_radix(&text(&file["permissions"]), 8).unwrap_or(0o644);
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        if let Some(owner) = file["owner"].as_str() {
            let done = Command::new("chown").arg(owner).arg(path).status()?;
            if !done.success() {
                return Err(Trouble::Failed(format!("OSError('Unknown user or group: {owner}')")));
            }
        }
    }
    Ok(())
}

fn hostname(data: &Value) -> Result<(), Trouble> {
    let given = data["hostname"].as_str().or_else(|| data["fqdn"].as_str());
    let local = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let name = match given {
        Some(given) if data["preserve_hostname"] != Value::Bool(true) => given,
        _ => local.trim(),
    };
    fs::write("/etc/hostname", format!("{name}\n"))?;
    fs::write("/etc/hosts", format!("127.0.1.1 {name} {name}\n127.0.0.1 localhost\n::1 localhost\n"))?;
    rustix::system::sethostname(name.as_bytes()).map_err(io::Error::from)?;
    Ok(())
}

fn users(data: &Value) -> Result<(), Trouble> {
    for user in list(data, "users")? {
        let name = user["name"].as_str().or_else(|| user.as_str()).unwrap_or_default();
        let known = Command::new("id").arg(name).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
        if name.is_empty() || name == "default" {
            continue;
        }
        if !known {
            let shell = user["shell"].as_str().unwrap_or("/bin/sh");
            let mut command = Command::new("useradd");
            command.args(["--create-home", "--shell", shell]);
            if let Some(groups) = user["groups"].as_str() {
                command.args(["--groups", &groups.replace(' ', "")]);
            }
            if user["system"] == Value::Bool(true) {
                command.arg("--system");
            }
            if !command.arg(name).status()?.success() {
                return Err(Trouble::Failed(format!("ProcessExecutionError('useradd {name}')")));
            }
        }
        let rules: Vec<String> = match &user["sudo"] {
            Value::String(rule) => vec![rule.clone()],
            Value::Array(rules) => rules.iter().map(text).collect(),
            _ => Vec::new(),
        };
        if !rules.is_empty() {
            let lines: String = rules.iter().map(|rule| format!("{name} {rule}\n")).collect();
            OpenOptions::new()
                .create(true)
                .append(true)
                .open("/etc/sudoers.d/90-cloud-init-users")?
                .write_all(lines.as_bytes())?;
        }
    }
    Ok(())
}

/// Packages are names only: that they are installed is written down.
fn packages(data: &Value, plan: &Plan) -> Result<(), Trouble> {
    let names: Vec<String> = list(data, "packages")?
        .iter()
        .map(|package| match package {
            Value::Array(words) => words.first().map(text).unwrap_or_default(),
            other => text(other),
        })
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let missing: Vec<&String> = names.iter().filter(|name| plan.missing_packages.contains(name)).collect();
    if let Some(name) = missing.first() {
        complain(&format!("E: Unable to locate package {name}\n"));
        return Err(Trouble::Failed("PackageInstallerError(\"Failed to install the following packages\")".to_owned()));
    }
    let mut file = OpenOptions::new().create(true).append(true).open("/var/lib/installed-packages")?;
    file.write_all(format!("{}\n", names.join("\n")).as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_words_or_lines() {
        let told = script(&[json!(["echo", "it's", 1]), json!("echo a && echo b"), Value::Null]);
        assert_eq!(told, "#!/bin/sh\n'echo' 'it'\\''s' '1'\necho a && echo b\n");
    }
}
