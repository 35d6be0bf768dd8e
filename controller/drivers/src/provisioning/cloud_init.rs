//! What cloud-init is told: the lines that install from the seed disk, or that show whose a machine is where the
//! driver installs by itself, and what the user wants besides.

use serde_json::{Map, Value, json};
use vm_agent_schemas::fleet::{Package, Provision};
use vm_agent_schemas::guest::SEED_DISK_LABEL;
use vm_agent_schemas::ids::{Incarnation, Nonce};
use vm_agent_schemas::names::InstanceName;

/// Where a machine says by which nonce it was made.
pub const BIRTH_FILE: &str = "/etc/vm-agent/birth";

/// What Multipass mounts folders of the host by. Without it, it installs a snap when it first needs it.
const MOUNTING_PACKAGE: &str = "sshfs";

/// The file `meta-data`. cloud-init does once for each instance id what is to be done once, so a new
/// incarnation has a new one.
#[must_use]
pub fn meta_data(instance: &InstanceName, incarnation: Incarnation) -> String {
    document(&json!({ "instance-id": format!("{instance}-{incarnation}"), "local-hostname": instance }))
}

/// The file `user-data`: ours, with what the user wants laid over it key by key; where both have a list, that of
/// the user stands behind ours. What ours is needed for no [`CloudInit`](vm_agent_schemas::fleet::CloudInit) has.
#[must_use]
pub fn user_data(provision: &Provision) -> String {
    with_theirs(ours(provision), provision)
}

/// What a machine is launched with whose driver runs programs in it: it installs nothing, and has in it from the
/// beginning by which nonce it was made. With mounts, it also has what they take.
#[must_use]
pub fn launch_data(provision: &Provision, birth: &Nonce, with_mounts: bool) -> String {
    let file = json!({ "path": BIRTH_FILE, "permissions": "0600", "content": format!("{birth}\n") });
    let mut ours = Map::from_iter([("write_files".to_owned(), json!([file]))]);
    let mounting = with_mounts.then_some(MOUNTING_PACKAGE);
    packages(&mut ours, mounting.into_iter().chain(provision.packages.iter().map(Package::as_str)));
    with_theirs(ours, provision)
}

fn with_theirs(mut all: Map<String, Value>, provision: &Provision) -> String {
    for (key, wanted) in provision.cloud_init.keys() {
        match (all.get_mut(key), wanted) {
            (Some(Value::Array(ours)), Value::Array(wanted)) => ours.extend_from_slice(wanted),
            _ => drop(all.insert(key.clone(), wanted.clone())),
        }
    }
    format!("#cloud-config\n{}", document(&Value::Object(all)))
}

/// The runtime is installed at each boot and before anything of the user's, so that the guest program can tell
/// how it goes with the rest.
fn ours(provision: &Provision) -> Map<String, Value> {
    let install = format!(
        "place=$(mktemp -d /run/vm-agent-seed.XXXXXX) && mount -o ro LABEL={SEED_DISK_LABEL} \"$place\" && \
         sh \"$place/install.sh\"; umount \"$place\""
    );
    let mut ours = Map::new();
    ours.insert("bootcmd".to_owned(), json!([["sh", "-c", install]]));
    // The guest program sets it, also in a copy that comes to another name.
    ours.insert("preserve_hostname".to_owned(), json!(true));
    packages(&mut ours, provision.packages.iter().map(Package::as_str));
    ours
}

fn packages<'a>(ours: &mut Map<String, Value>, packages: impl Iterator<Item = &'a str>) {
    let packages: Vec<_> = packages.collect();
    if !packages.is_empty() {
        ours.insert("package_update".to_owned(), json!(true));
        ours.insert("packages".to_owned(), json!(packages));
    }
}

/// A value as YAML. It is written as JSON, which YAML 1.2 contains: each text stands in quotes, so that no
/// reader of an older YAML takes `on`, `0644` or `1:30` for something else. Characters that such readers refuse are
/// escaped.
fn document(value: &Value) -> String {
    let mut text = String::new();
    for character in format!("{value:#}").chars() {
        match u32::from(character) {
            // Outside of texts, JSON has only ASCII that is printed.
            code @ (0x7f..=0x9f | 0x2028 | 0x2029 | 0xfeff | 0xfffe | 0xffff) => {
                text.push_str(&format!("\\u{code:04x}"));
            }
            _ => text.push(character),
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn provision(wanted: Value) -> Provision {
        serde_json::from_value(wanted).unwrap()
    }

    #[test]
    fn without_a_user_it_only_installs_from_the_seed_disk() {
        insta::assert_snapshot!(user_data(&Provision::default()), @r#"
        #cloud-config
        {
          "bootcmd": [
            [
              "sh",
              "-c",
              "place=$(mktemp -d /run/vm-agent-seed.XXXXXX) && mount -o ro LABEL=CIDATA \"$place\" && sh \"$place/install.sh\"; umount \"$place\""
            ]
          ],
          "preserve_hostname": true
        }
        "#);
    }

    #[test]
    fn what_a_user_wants_stands_behind_and_beside_ours() {
        let wanted = json!({
            "packages": ["ripgrep", "git"],
            "cloudInit": {
                "package_update": false,
                "packages": [["libpython3-dev", "3.11.2-1"]],
                "bootcmd": ["echo early", ["sh", "-c", "echo \"quoted\" 'text'"]],
                "write_files": [{ "path": "/etc/motd", "permissions": "0644", "content": "on\nné\u{7f}\u{85}😀\n" }],
                "apt": { "conf": "a", "sources": { "x": [1] } },
            },
        });
        insta::assert_snapshot!(user_data(&provision(wanted)), @r#"
        #cloud-config
        {
          "bootcmd": [
            [
              "sh",
              "-c",
              "place=$(mktemp -d /run/vm-agent-seed.XXXXXX) && mount -o ro LABEL=CIDATA \"$place\" && sh \"$place/install.sh\"; umount \"$place\""
            ],
            "echo early",
            [
              "sh",
              "-c",
              "echo \"quoted\" 'text'"
            ]
          ],
          "preserve_hostname": true,
          "package_update": false,
          "packages": [
            "git",
            "ripgrep",
            [
              "libpython3-dev",
              "3.11.2-1"
            ]
          ],
          "apt": {
            "conf": "a",
            "sources": {
              "x": [
                1
              ]
            }
          },
          "write_files": [
            {
              "path": "/etc/motd",
              "permissions": "0644",
              "content": "on\nné\u007f\u0085😀\n"
            }
          ]
        }
        "#);
    }

    #[test]
    fn a_machine_that_is_launched_has_in_it_whose_it_is_before_anything_of_the_users() {
        let files = json!([{ "path": "/etc/motd", "content": "hi" }]);
        let wanted = provision(json!({ "packages": ["git"], "cloudInit": { "write_files": files, "runcmd": ["ls"] } }));
        insta::assert_snapshot!(launch_data(&wanted, &Nonce::from_text("0123abcd"), true), @r#"
        #cloud-config
        {
          "write_files": [
            {
              "path": "/etc/vm-agent/birth",
              "permissions": "0600",
              "content": "0123abcd\n"
            },
            {
              "path": "/etc/motd",
              "content": "hi"
            }
          ],
          "package_update": true,
          "packages": [
            "sshfs",
            "git"
          ],
          "runcmd": [
            "ls"
          ]
        }
        "#);
        let plain = launch_data(&Provision::default(), &Nonce::from_text("0123abcd"), false);
        assert!(plain.contains(BIRTH_FILE) && !plain.contains("packages") && !plain.contains("bootcmd"), "{plain}");
    }

    #[test]
    fn every_incarnation_has_an_instance_id_of_its_own() {
        insta::assert_snapshot!(meta_data(&"web".parse().unwrap(), Incarnation(7)), @r#"
        {
          "instance-id": "web-7",
          "local-hostname": "web"
        }
        "#);
    }

    proptest! {
        #[test]
        fn whatever_is_wanted_the_runtime_is_installed_first_and_the_document_reads_back(
            texts in proptest::collection::btree_map("[a-z_]{1,12}", ".{0,20}", 0..6),
            lists in proptest::collection::vec(".{0,20}", 0..4),
            packages in proptest::collection::btree_set("[a-z0-9][a-z0-9+.-]{0,8}", 0..4),
        ) {
            let mut wanted: Map<String, Value> = texts.into_iter().map(|(key, text)| (key, text.into())).collect();
            for key in ["bootcmd", "runcmd", "packages"] {
                wanted.insert(key.to_owned(), json!(lists));
            }
            let wanted = json!({ "packages": packages, "cloudInit": wanted });
            let Ok(provision) = serde_json::from_value::<Provision>(wanted) else { return Ok(()) };
            let said = user_data(&provision);
            prop_assert_eq!(&said, &user_data(&provision.clone()));
            let said: Value = serde_json::from_str(said.strip_prefix("#cloud-config\n").unwrap()).unwrap();
            prop_assert!(said["bootcmd"][0][2].as_str().unwrap().contains("install.sh"));
            prop_assert_eq!(said["bootcmd"].as_array().unwrap().len(), 1 + lists.len());
            prop_assert_eq!(&said["preserve_hostname"], &json!(true));
            let all: Vec<_> = packages.iter().chain(&lists).collect();
            prop_assert_eq!(&said["packages"], &json!(all));
        }
    }
}
