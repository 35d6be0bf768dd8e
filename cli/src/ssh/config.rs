//! What an SSH client has to know of the agents.

use std::fmt::Write as _;
use std::path::Path;

use vm_agent_schemas::names::{AgentName, FleetName};

/// What all agents of a fleet have in common.
pub(crate) struct Fleet<'a> {
    /// The fleet.
    pub(crate) name: &'a FleetName,
    /// The command that reaches a controller: this program, with what it needs to find it.
    pub(crate) command: &'a [String],
    /// The file with the host key that `ssh-proxy` shows.
    pub(crate) known_hosts: &'a Path,
}

/// The host name by which an SSH client knows an agent: `NAME.vm-agent`, or `NAME.FLEET.vm-agent`.
pub(crate) fn host(fleet: &FleetName, agent: &AgentName) -> String {
    if *fleet == FleetName::default() { format!("{agent}.vm-agent") } else { format!("{agent}.{fleet}.vm-agent") }
}

/// The name under which the host key stands in the file of known hosts.
pub(crate) const KEY_ALIAS: &str = "vm-agent";

/// One block for each agent, as `ssh_config(5)` wants it.
pub(crate) fn render(fleet: &Fleet<'_>, agents: &[AgentName]) -> String {
    let mut text = String::new();
    for agent in agents {
        let command: Vec<String> = fleet.command.iter().map(|word| quoted(word)).collect();
        let _ = write!(
            text,
            "Host {host}\n  ProxyCommand {command} ssh-proxy {agent}\n  User agent\n  HostKeyAlias {KEY_ALIAS}\n  \
             UserKnownHostsFile {known_hosts}\n  StrictHostKeyChecking yes\n  PreferredAuthentications none\n\n",
            host = host(fleet.name, agent),
            command = command.join(" "),
            known_hosts = path_quoted(&fleet.known_hosts.to_string_lossy()),
        );
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// A word as the shell reads it that runs `ProxyCommand`; `%` would be a token of SSH's own.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.=:@+,".contains(c);
    let word = word.replace('%', "%%");
    if !word.is_empty() && word.chars().all(|c| plain(c) || c == '%') {
        word
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A path as SSH itself reads it.
fn path_quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_is_a_host_that_is_reached_by_this_program() {
        let command = ["/opt/my tools/vm-agent", "--state-dir", "/tmp/100%"].map(str::to_owned);
        let fleet = Fleet { name: &FleetName::default(), command: &command, known_hosts: Path::new("/tmp/100%/known") };
        insta::assert_snapshot!(render(&fleet, &["web-1".parse().unwrap(), "db".parse().unwrap()]), @r#"
        Host web-1.vm-agent
          ProxyCommand '/opt/my tools/vm-agent' --state-dir /tmp/100%% ssh-proxy web-1
          User agent
          HostKeyAlias vm-agent
          UserKnownHostsFile "/tmp/100%%/known"
          StrictHostKeyChecking yes
          PreferredAuthentications none

        Host db.vm-agent
          ProxyCommand '/opt/my tools/vm-agent' --state-dir /tmp/100%% ssh-proxy db
          User agent
          HostKeyAlias vm-agent
          UserKnownHostsFile "/tmp/100%%/known"
          StrictHostKeyChecking yes
          PreferredAuthentications none
        "#);
    }

    #[test]
    fn another_fleet_has_a_domain_of_its_own() {
        assert_eq!(host(&"lab".parse().unwrap(), &"web".parse().unwrap()), "web.lab.vm-agent");
    }
}
