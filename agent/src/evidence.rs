//! Where the runtime runs, as far as it can show that: by what was laid into its machine for it alone.

use std::fs;
use std::path::{Path, PathBuf};

use vm_agent_schemas::guest::{CHALLENGE_FILE, CHALLENGE_VARIABLE, MachineId};
use vm_agent_schemas::ids::{Secret, SessionId};
use vm_agent_schemas::wire::{Evidence, Verify};

/// What the kernel calls its present boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What the operating system calls itself.
const MACHINE_ID: &str = "/etc/machine-id";

/// Answers a question of this session.
pub(crate) fn evidence(question: &Verify, session: SessionId) -> Evidence {
    let file = std::env::var_os(CHALLENGE_VARIABLE).map_or_else(|| PathBuf::from(CHALLENGE_FILE), PathBuf::from);
    let challenge = take(&file, question);
    let text = |file| fs::read_to_string(file).ok().map(|text| text.trim().to_owned());
    let machine = text(MACHINE_ID).and_then(|id| id.parse::<MachineId>().ok()).map(|id| id.digest());
    let boot = text(BOOT_ID).and_then(|id| id.parse().ok());
    Evidence::new(question, challenge.as_ref(), session, machine, boot)
}

/// Reads the challenge that the question is about, and removes it: it is used once. Another one stays, for the
/// question that is on its way.
fn take(file: &Path, question: &Verify) -> Option<Secret> {
    let challenge = match fs::read_to_string(file) {
        Ok(text) => Secret::from_text(text.trim()),
        Err(error) => {
            tracing::warn!("asked where it runs, and {} can't be read: {error}", file.display());
            return None;
        }
    };
    if challenge.digest() != question.challenge {
        tracing::warn!("asked where it runs, and {} is for another question", file.display());
        return None;
    }
    if let Err(error) = fs::remove_file(file) {
        tracing::debug!("{} stays, and means nothing any more: {error}", file.display());
    }
    Some(challenge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::ids::RequestId;

    #[test]
    fn a_challenge_is_taken_once_and_only_by_the_question_that_is_about_it() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("challenge");
        let challenge = Secret::generate();
        let about = |challenge: &Secret| Verify { request: RequestId::generate(), challenge: challenge.digest() };
        assert_eq!(take(&file, &about(&challenge)), None, "nothing lies there");
        fs::write(&file, challenge.expose()).unwrap();
        assert_eq!(take(&file, &about(&Secret::generate())), None, "another one lies there");
        assert_eq!(take(&file, &about(&challenge)), Some(challenge.clone()));
        assert_eq!(take(&file, &about(&challenge)), None, "it was used");
    }
}
