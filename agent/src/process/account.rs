//! Users of the machine: looked up in `/etc/passwd` and `/etc/group`, and acted for.
//!
//! The runtime is a static program, so users that only a directory service knows are unknown here. Credentials
//! belong to threads on Linux: what is done for a user is done on a thread of its own, which has the user's
//! rights to files. Its real user stays the runtime's, so that the user can't send it, and by that the whole
//! runtime, a signal.

use std::io;

use rustix::process::geteuid;

/// Where users are listed.
const USERS: &str = "/etc/passwd";
/// Where groups are listed.
const GROUPS: &str = "/etc/group";

/// A user of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    name: String,
    uid: u32,
    gid: u32,
    /// All its groups, the first one included.
    groups: Vec<u32>,
    home: String,
    shell: String,
}

/// Why nothing can be done as a user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    #[error("there is no user `{0}` in {USERS}; make it, or name another")]
    Unknown(String),
    #[error("{USERS} can't be read: {0}")]
    Unreadable(io::Error),
    #[error("only a runtime that runs as root can do something as user `{0}`")]
    NotRoot(String),
    #[error("the system does not let the runtime act as user `{name}`: {reason}")]
    Refused { name: String, reason: io::Error },
}

impl Account {
    /// The user of this name, if something can be done as that.
    pub(crate) fn find(name: &str) -> Result<Self, AccountError> {
        let users = std::fs::read_to_string(USERS).map_err(AccountError::Unreadable)?;
        // Who has no list of groups has no further groups.
        let groups = std::fs::read_to_string(GROUPS).unwrap_or_default();
        let account = parse(&users, &groups, name).ok_or_else(|| AccountError::Unknown(name.to_owned()))?;
        if account.is_own() || geteuid().is_root() { Ok(account) } else { Err(AccountError::NotRoot(account.name)) }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What its processes find in their environment.
    pub(crate) fn environment(&self) -> [(&'static str, &str); 4] {
        [("HOME", &self.home), ("USER", &self.name), ("LOGNAME", &self.name), ("SHELL", self.shell())]
    }

    /// Its shell.
    pub(crate) fn shell(&self) -> &str {
        if self.shell.is_empty() { "/bin/sh" } else { &self.shell }
    }

    /// What a command is to switch to, if that is not what the runtime is already. It has to be spawned on
    /// [`Account::spawning`]'s thread.
    pub(crate) fn uid(&self) -> Option<u32> {
        (!self.is_own()).then_some(self.uid)
    }

    /// The user's first group, where [`Account::uid`] says something.
    pub(crate) fn gid(&self) -> u32 {
        self.gid
    }

    fn is_own(&self) -> bool {
        geteuid().as_raw() == self.uid
    }

    /// Does something with the user's rights to files, on a thread of its own; waits for it.
    pub(crate) fn act<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> Result<T, AccountError> {
        if self.is_own() {
            return Ok(deed());
        }
        self.on_thread(|| credentials::for_files(self).map(|()| deed()))
    }

    /// Spawns a command whose user is this one's [`uid`](Account::uid), so that it has the user's groups.
    pub(crate) fn spawning<T: Send>(&self, spawn: impl FnOnce() -> T + Send) -> Result<T, AccountError> {
        if self.is_own() {
            return Ok(spawn());
        }
        self.on_thread(|| credentials::for_children(self).map(|()| spawn()))
    }

    fn on_thread<T: Send>(&self, deed: impl FnOnce() -> io::Result<T> + Send) -> Result<T, AccountError> {
        let refused = |reason| AccountError::Refused { name: self.name.clone(), reason };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, deed).map_err(refused)?;
            let done = thread.join().unwrap_or_else(|_| Err(io::Error::other("what was done for it broke off")));
            done.map_err(refused)
        })
    }
}

#[cfg(target_os = "linux")]
mod credentials {
    use std::io;

    use rustix::process::{Gid, Uid};
    use rustix::thread::{
        CapabilitySet, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    };

    use super::Account;

    /// Gives this thread the user's rights to files.
    pub(super) fn for_files(account: &Account) -> io::Result<()> {
        set_thread_groups(&groups(account))?;
        set_thread_res_gid(None, Gid::from_raw(account.gid), None)?;
        Ok(set_thread_res_uid(None, Uid::from_raw(account.uid), None)?)
    }

    /// Gives this thread the user's groups, and takes away the right to change them: the standard library drops
    /// all groups of a command that has a user, unless it may not.
    pub(super) fn for_children(account: &Account) -> io::Result<()> {
        set_thread_groups(&groups(account))?;
        let gid = Gid::from_raw(account.gid);
        set_thread_res_gid(gid, gid, gid)?;
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::SETGID);
        Ok(set_capabilities(None, sets)?)
    }

    fn groups(account: &Account) -> Vec<Gid> {
        account.groups.iter().map(|&group| Gid::from_raw(group)).collect()
    }
}

#[cfg(not(target_os = "linux"))]
mod credentials {
    use std::io;

    use super::Account;

    /// Credentials belong to the whole process here.
    pub(super) fn for_files(_: &Account) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A command changes its user and its group by itself; further groups it has none.
    pub(super) fn for_children(_: &Account) -> io::Result<()> {
        Ok(())
    }
}

/// A user, as the lists of users and groups say.
fn parse(users: &str, groups: &str, name: &str) -> Option<Account> {
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|it| it[0] == name)?;
    let [_, _, uid, gid, _, home, rest @ ..] = fields.as_slice() else { return None };
    let gid = gid.parse().ok()?;
    let member = |line: &str| {
        let [_, _, id, members] = line.split(':').collect::<Vec<_>>()[..] else { return None };
        members.split(',').any(|member| member == name).then(|| id.parse().ok())?
    };
    let mut all: Vec<u32> = [gid].into_iter().chain(groups.lines().filter_map(member)).collect();
    all.sort_unstable();
    all.dedup();
    let shell = rest.first().copied().unwrap_or_default().to_owned();
    Some(Account { name: name.to_owned(), uid: uid.parse().ok()?, gid, groups: all, home: (*home).to_owned(), shell })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "root:x:0:0:root:/root:/bin/bash\nbob:x:1000:1001:Bob,,,:/home/bob:\ntorn:x:7\n";

    #[test]
    fn a_user_has_its_home_its_shell_and_all_its_groups() {
        let groups = "docker:x:50:alice,bob\nsudo:x:27:bob\nbob:x:1001:\nbobs:x:60:bobby\n";
        let bob = parse(LIST, groups, "bob").unwrap();
        assert_eq!((bob.uid, bob.gid, bob.groups.as_slice()), (1000, 1001, [27, 50, 1001].as_slice()));
        let environment = [("HOME", "/home/bob"), ("USER", "bob"), ("LOGNAME", "bob"), ("SHELL", "/bin/sh")];
        assert_eq!(bob.environment(), environment);
        assert_eq!(parse(LIST, groups, "root").unwrap().shell(), "/bin/bash");
    }

    #[test]
    fn a_user_that_is_not_listed_whole_is_none() {
        for name in ["torn", "bo", "", "x"] {
            assert_eq!(parse(LIST, "", name), None, "{name}");
        }
        let error = Account::find("no-such-user").unwrap_err().to_string();
        assert_eq!(error, "there is no user `no-such-user` in /etc/passwd; make it, or name another");
    }
}
