//! What cloud-init is told: the lines that install from the seed disk, and what the user wants besides.

use serde_json::{Map, Value, json};
use vm_agent_schemas::guest::SEED_DISK_LABEL;
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::InstanceName;

/// What a user's configuration can't have, with the reason.
const RESERVED: [(&str, &str); 5] = [
    ("hostname", "the host name is that of the instance"),
    ("fqdn", "the host name is that of the instance"),
    ("prefer_fqdn_over_hostname", "the host name is that of the instance"),
    ("cloud_init_modules", "the runtime is installed by one of them"),
    ("datasource_list", "the configuration comes from the seed disk"),
];

/// What the user wants of cloud-init where ours is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`cloudInit.{key}` can't be set: {reason}")]
pub struct Conflict {
    /// The key, with those that it lies in.
    pub key: String,
    /// What ours is needed for.
    pub reason: String,
}

/// The file `meta-data`. cloud-init does once for each instance id what is to be done once, so a new
/// incarnation has a new one.
#[must_use]
pub fn meta_data(instance: &InstanceName, incarnation: Incarnation) -> String {
    document(&json!({ "instance-id": format!("{instance}-{incarnation}"), "local-hostname": instance }))
}

/// The file `user-data`: ours, with what the user wants laid together as cloud-init does it with
/// `list(append)+dict(recurse_list)`: maps key by key, lists one behind the other, ours first.
///
/// # Errors
/// When both say something about a key, and it can't be put together.
pub fn user_data(wanted: &Map<String, Value>) -> Result<String, Conflict> {
    for (key, reason) in RESERVED {
        if wanted.contains_key(key) {
            return Err(Conflict { key: key.to_owned(), reason: reason.to_owned() });
        }
    }
    let mut all = ours();
    unite(&mut all, wanted, "")?;
    Ok(format!("#cloud-config\n{}", document(&Value::Object(all))))
}

/// The runtime is installed at each boot and before anything of the user's, so that the guest program can tell
/// how it goes with the rest.
fn ours() -> Map<String, Value> {
    let install = format!(
        "place=$(mktemp -d /run/vm-agent-seed.XXXXXX) && mount -o ro LABEL={SEED_DISK_LABEL} \"$place\" && \
         sh \"$place/install.sh\"; umount \"$place\""
    );
    let ours = json!({
        "bootcmd": [["sh", "-c", install]],
        // The guest program sets it, also in a copy that comes to another name.
        "preserve_hostname": true,
    });
    match ours {
        Value::Object(ours) => ours,
        _ => Map::new(),
    }
}

/// Lays what is wanted into what is there. `within` is where both lie, with a dot at its end.
fn unite(there: &mut Map<String, Value>, wanted: &Map<String, Value>, within: &str) -> Result<(), Conflict> {
    for (key, wanted) in wanted {
        match (there.get_mut(key), wanted) {
            (None, wanted) => {
                there.insert(key.clone(), wanted.clone());
            }
            (Some(Value::Object(there)), Value::Object(wanted)) => unite(there, wanted, &format!("{within}{key}."))?,
            (Some(Value::Array(there)), Value::Array(wanted)) => there.extend_from_slice(wanted),
            (Some(there), wanted) if there == wanted => {}
            (Some(there), _) => {
                let reason = match there {
                    Value::Array(_) => {
                        "the runtime is installed by a list there, and yours has to be one too".to_owned()
                    }
                    ours => format!("the runtime needs it to be {ours}"),
                };
                return Err(Conflict { key: format!("{within}{key}"), reason });
            }
        }
    }
    Ok(())
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

    fn with(wanted: Value) -> Result<String, Conflict> {
        let Value::Object(wanted) = wanted else { panic!("a configuration is a map") };
        user_data(&wanted)
    }

    #[test]
    fn without_a_user_it_only_installs_from_the_seed_disk() {
        insta::assert_snapshot!(with(json!({})).unwrap(), @r#"
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
            "package_update": true,
            "packages": ["git", ["libpython3-dev", "3.11.2-1"]],
            "bootcmd": ["echo early", ["sh", "-c", "echo \"quoted\" 'text'"]],
            "write_files": [{ "path": "/etc/motd", "permissions": "0644", "content": "on\nné\u{7f}\u{85}😀\n" }],
            "preserve_hostname": true,
        });
        insta::assert_snapshot!(with(wanted).unwrap(), @r#"
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
          "package_update": true,
          "packages": [
            "git",
            [
              "libpython3-dev",
              "3.11.2-1"
            ]
          ],
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
    fn a_key_where_ours_is_needed_is_named() {
        let sentence = |wanted| with(wanted).unwrap_err().to_string();
        assert_eq!(
            sentence(json!({ "bootcmd": "echo early" })),
            "`cloudInit.bootcmd` can't be set: the runtime is installed by a list there, and yours has to be one too"
        );
        assert_eq!(
            sentence(json!({ "preserve_hostname": false })),
            "`cloudInit.preserve_hostname` can't be set: the runtime needs it to be true"
        );
        assert_eq!(
            sentence(json!({ "hostname": "other" })),
            "`cloudInit.hostname` can't be set: the host name is that of the instance"
        );
    }

    #[test]
    fn maps_are_united_key_by_key_and_a_conflict_is_named_with_its_place() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let mut there = map(json!({ "apt": { "conf": "a", "sources": { "x": [1] } } }));
        unite(&mut there, &map(json!({ "apt": { "sources": { "x": [2], "y": {} } }, "z": null })), "").unwrap();
        assert_eq!(
            Value::Object(there.clone()),
            json!({ "apt": { "conf": "a", "sources": { "x": [1, 2], "y": {} } }, "z": null })
        );
        let conflict = unite(&mut there, &map(json!({ "apt": { "sources": { "x": 2 } } })), "").unwrap_err();
        assert_eq!(conflict.key, "apt.sources.x");
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
}
