//! What the command `multipass` means when it fails. Its exit codes carry little, so its words have to do; whoever
//! is told of a trouble looks at the instance before it believes it.

use super::cli::Said;

/// The kinds of failure that are dealt with in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The daemon does not listen.
    Unreachable,
    /// This user may not speak to the daemon.
    Denied,
    /// There is no such instance, snapshot or mount.
    Missing,
    /// The instance is deleted and keeps its name.
    Deleted,
    /// There is one of that name already, or in that place.
    Exists,
    /// The daemon is at work on it.
    Busy,
    /// The instance has to be in another state for this.
    State,
    /// The instance lives and its daemon has lost sight of it.
    Lost,
    /// It took too long, and may go on.
    Late,
    /// The instance can't be spoken to just now.
    Transport,
    /// The image can't be had just now.
    ImageAway,
    /// There is no such image, or none that can be used.
    Image,
    /// The daemon took the disk of an instance that runs for the image.
    ImageLocked,
    /// What was asked makes no sense.
    Invalid,
    /// This Multipass can't do it.
    Unsupported,
    /// Anything else.
    Other,
}

/// What tells them apart: a trouble is the first of these all of whose words are said.
const SIGNS: &[(Trouble, &[&str])] = &[
    (Trouble::Unreachable, &["cannot connect to the multipass socket"]),
    (Trouble::Unreachable, &["could not reach daemon"]),
    (Trouble::Denied, &["socket access denied"]),
    (Trouble::Denied, &["not authenticated with the multipass service"]),
    (Trouble::ImageLocked, &["cannot get image info", "failed to get", "lock"]),
    (Trouble::Lost, &["unknown state"]),
    (Trouble::Late, &["timed out"]),
    (Trouble::Late, &["did not finish within"]),
    (Trouble::Late, &["could not determine ip address"]),
    (Trouble::Transport, &["ssh connection failed"]),
    (Trouble::Transport, &["ssh unavailable on instance"]),
    (Trouble::ImageAway, &["unknown or unreachable"]),
    (Trouble::ImageAway, &["failed to download"]),
    (Trouble::ImageAway, &["hash of", "does not match"]),
    (Trouble::Image, &["unable to find an image"]),
    (Trouble::Image, &["no longer supported"]),
    (Trouble::Image, &["custom image", "does not exist"]),
    (Trouble::Image, &["is not found. please use `multipass find`"]),
    (Trouble::Missing, &["instance", "does not exist"]),
    (Trouble::Missing, &["no such instance"]),
    (Trouble::Missing, &["no such snapshot"]),
    (Trouble::Missing, &["is not mounted"]),
    (Trouble::Deleted, &["is deleted"]),
    (Trouble::Exists, &["already exists"]),
    (Trouble::Exists, &["is already mounted"]),
    (Trouble::Busy, &["is being prepared"]),
    (Trouble::Busy, &["cannot shut down", "while starting"]),
    (Trouble::Busy, &["cannot shut down", "while suspending"]),
    (Trouble::Busy, &["cannot start", "while suspending"]),
    (Trouble::State, &["of stopped instances"]),
    (Trouble::State, &["only clone stopped"]),
    (Trouble::State, &["must be stopped for modification"]),
    (Trouble::State, &["is not running"]),
    (Trouble::State, &["shut down suspended"]),
    (Trouble::Unsupported, &["not implemented on this backend"]),
    (Trouble::Unsupported, &["not supported"]),
    (Trouble::Unsupported, &["unknown option"]),
    (Trouble::Unsupported, &["unknown command"]),
    (Trouble::Invalid, &["invalid"]),
    (Trouble::Invalid, &["not a valid memory size"]),
    (Trouble::Invalid, &["below minimum"]),
    (Trouble::Invalid, &["less than", "minimum"]),
    (Trouble::Invalid, &["can only be expanded"]),
    (Trouble::Invalid, &["unrecognized settings key"]),
];

/// The code with which the command says that its own time is over.
const TIMED_OUT: i32 = 5;

impl Trouble {
    /// What a call that failed came to.
    pub(super) fn of(said: &Said) -> Self {
        // An unknown command is told on stdout.
        let text = [said.stderr.as_slice(), &said.stdout].map(|bytes| String::from_utf8_lossy(bytes).to_lowercase());
        let found = text.iter().find_map(|text| {
            let said = |words: &[&str]| words.iter().all(|word| text.contains(word));
            SIGNS.iter().find(|(_, words)| said(words)).map(|(trouble, _)| *trouble)
        });
        match found {
            Some(found) => found,
            None if said.code == Some(TIMED_OUT) => Self::Late,
            None => Self::Other,
        }
    }

    /// Whether it is of the daemon, and says nothing of any instance.
    pub(super) const fn is_of_daemon(self) -> bool {
        matches!(self, Self::Unreachable | Self::Denied)
    }

    /// What a person can do about it, where that is not in the command's own words.
    pub(super) const fn remedy(self) -> Option<&'static str> {
        match self {
            Self::Unreachable => Some(
                "start its daemon, or restart it (`sudo snap restart multipass`, or `sudo launchctl kickstart -k \
                 system/com.canonical.multipassd` on macOS), or wait until it is up again",
            ),
            Self::Denied => Some(
                "run `multipass list` once as a member of the group `sudo`, `admin` or `wheel`, or `multipass \
                 authenticate` as this user",
            ),
            _ => None,
        }
    }
}

/// What a call that failed said, as a sentence: without the time, the name of the command and what only a terminal
/// shows.
pub(super) fn sentence(said: &Said) -> String {
    /// Enough for a sentence and its cause.
    const LINES: usize = 4;
    let text = String::from_utf8_lossy(if said.stderr.trim_ascii().is_empty() { &said.stdout } else { &said.stderr });
    let mut lines: Vec<String> = Vec::new();
    for line in plain(&text).lines().map(bare).filter(|line| !line.is_empty() && !is_heading(line)) {
        // `exec` of a missing instance says everything twice.
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let last = lines[lines.len().saturating_sub(LINES)..].join("; ").replace(".; ", "; ");
    match (last.is_empty(), said.code) {
        (false, None) => format!("a signal ended it; the last that it said was `{last}`"),
        (false, Some(_)) => last,
        (true, Some(code)) => format!("it ended with {code} and said nothing"),
        (true, None) => "a signal ended it".to_owned(),
    }
}

/// A text without what moves a cursor, each state of a spinner on a line of its own.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.clone().next() == Some('[') => {
                characters.next();
                let _ = characters.by_ref().find(char::is_ascii_alphabetic);
                plain.push('\n');
            }
            '\r' | '\u{8}' => plain.push('\n'),
            _ => plain.push(character),
        }
    }
    plain
}

/// A line without the marks of a log before it: `[time] [error] [client] `, and those of gRPC,
/// `E1123 23:26:50.674203678    6812 ssl_transport_security.cc:1501] `.
fn bare(line: &str) -> String {
    let mut rest = line.trim();
    if let Some((mark, after)) = rest.split_once("] ")
        && is_of_grpc(mark)
    {
        rest = after.trim_start();
    }
    while let Some((mark, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] "))
        && !mark.contains('[')
    {
        rest = after.trim_start();
    }
    let rest = rest.strip_prefix("Caught an unhandled exception: ").unwrap_or(rest);
    // `launch failed: ` tells the verb, which whoever reads this knows.
    let told = rest.split_once(" failed: ").filter(|(verb, _)| verb.chars().all(|c| c.is_ascii_lowercase()));
    told.map_or(rest, |(_, why)| why).trim_end().to_owned()
}

/// Whether a line of a log begins like this: severity and date, time, thread, place.
fn is_of_grpc(mark: &str) -> bool {
    let words: Vec<&str> = mark.split_whitespace().collect();
    let [day, _, thread, place] = words[..] else { return false };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_day = day.strip_prefix(['I', 'W', 'E', 'F']).is_some_and(|date| date.len() == 4 && is_number(date));
    is_day && is_number(thread) && place.rsplit_once(':').is_some_and(|(_, line)| is_number(line))
}

/// Whether a line only says that others follow.
fn is_heading(line: &str) -> bool {
    matches!(line, "The following errors occurred:" | "instance(s) missing" | "/" | "-" | "\\" | "|")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What real calls wrote when they failed: a line with the kind and the code, what was written, and a line `===`.
    const RECORDED: &str = include_str!("fixtures/failures.txt");

    fn said(code: i32, stderr: &str) -> Said {
        Said { code: Some(code), stdout: Vec::new(), stderr: stderr.as_bytes().to_vec() }
    }

    #[test]
    fn what_real_calls_said_is_told_apart() {
        let mut seen = 0;
        for recorded in RECORDED.split("\n===\n").map(str::trim_start).filter(|recorded| !recorded.is_empty()) {
            let (head, text) = recorded.split_once('\n').unwrap();
            let (kind, code) = head.split_once(' ').unwrap();
            let found = Trouble::of(&said(code.parse().unwrap(), text));
            assert_eq!(format!("{found:?}"), kind, "{text}");
            seen += 1;
        }
        assert!(seen > 40, "{seen}");
    }

    #[test]
    fn a_failure_is_told_in_a_sentence() {
        let told = |code, text| sentence(&said(code, text));
        assert_eq!(told(2, "launch failed: instance \"one\" already exists\n"), "instance \"one\" already exists");
        assert_eq!(
            told(2, "start failed: The following errors occurred:\ntmo: timed out waiting for response\n"),
            "tmo: timed out waiting for response"
        );
        let twice = "exec failed: The following errors occurred:\ninstance \"x\" does not exist\n".repeat(2);
        assert_eq!(told(2, &twice), "instance \"x\" does not exist");
        let logged = "[2026-11-22T10:36:19.675] [error] [client] Caught an unhandled exception: Unable to ask.\n";
        assert_eq!(told(1, logged), "Unable to ask.");
        let of_grpc = "E1123 23:26:50.674203678    6812 ssl_transport_security.cc:1501]       Handshake failed.\n\
                       list failed: cannot connect to the multipass socket\n";
        assert_eq!(told(2, of_grpc), "Handshake failed; cannot connect to the multipass socket");
        assert_eq!(told(3, "\x1b[2K\x1b[0A\x1b[0E"), "it ended with 3 and said nothing");
        let spun = Said {
            code: Some(1),
            stdout: b"\x1b[2K\x1b[0A\x1b[0EStopping one  \x08/\x08-\x08".to_vec(),
            stderr: Vec::new(),
        };
        assert_eq!(sentence(&spun), "Stopping one");
        assert_eq!(sentence(&Said { code: None, stdout: Vec::new(), stderr: Vec::new() }), "a signal ended it");
        let killed = Said { code: None, ..spun };
        assert_eq!(sentence(&killed), "a signal ended it; the last that it said was `Stopping one`");
    }

    #[test]
    fn an_unknown_command_is_told_on_stdout() {
        let text = b"Error: Unknown command or alias 'clone' (try \"multipass help\" or \"multipass aliases\")\n";
        let said = Said { code: Some(1), stdout: text.to_vec(), stderr: Vec::new() };
        assert_eq!(Trouble::of(&said), Trouble::Unsupported);
    }
}
