use super::*;
use crate::fleet::{Field, Origin};
use crate::names::AgentName;

fn sentences(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn complaint(text: &str) -> String {
    sentences(&parse("fleet.yaml", text).expect_err("the text has an error"))
}

/// What is wrong with an agent `web` of these lines.
fn complaint_of_agent(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    complaint(&format!("agents:\n  web:\n{lines}"))
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.into(), path: Some(Path::new("/fleets").join(name)), text: text.into() }
}

mod keys_and_values {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_at_once_in_the_order_of_the_text() {
        insta::assert_snapshot!(complaint("
name: Lab
agents:
  web:
    memroy: 1G
    cpus: lots
    image: 24.10
    dependsOn: [databse]
    tasks:
      setup: {when: once}
  web: {}
  database: {restart: onfailure, health: [git]}
limits: {parallelism: 0x}
"), @r#"
        fleet.yaml:2:7: name: `Lab` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         2 | name: Lab
           |       ^
        fleet.yaml:5:5: agents.web.memroy: there is no key `memroy` here
         5 |     memroy: 1G
           |     ^
        hint: did you mean `memory`?
        fleet.yaml:6:11: agents.web.cpus: expected a whole number, found the text "lots"
         6 |     cpus: lots
           |           ^
        fleet.yaml:7:12: agents.web.image: expected a text, found 24.10, which YAML reads as the number 24.1
         7 |     image: 24.10
           |            ^
        hint: write "24.10"
        fleet.yaml:8:17: agents.web.dependsOn[0]: there is no agent `databse` to depend on
         8 |     dependsOn: [databse]
           |                 ^
        hint: did you mean `database`?
        fleet.yaml:10:7: agents.web.tasks.setup: the key `exec` is missing
         10 |       setup: {when: once}
            |       ^
        fleet.yaml:11:3: agents.web: `web` is here twice; the first is on line 4
         11 |   web: {}
            |   ^
        fleet.yaml:12:23: agents.database.restart: `onfailure` is none of always, on-failure, never
         12 |   database: {restart: onfailure, health: [git]}
            |                       ^
        hint: did you mean `on-failure`?
        fleet.yaml:12:34: agents.database.health: this key is planned: nothing acts on it yet, so it is refused rather than ignored
         12 |   database: {restart: onfailure, health: [git]}
            |                                  ^
        fleet.yaml:13:23: limits.parallelism: expected a whole number, found the text "0x"
         13 | limits: {parallelism: 0x}
            |                       ^
        "#);
    }

    #[test]
    fn every_unknown_key_of_a_map_is_told_with_the_right_word_or_the_right_place() {
        insta::assert_snapshot!(complaint("agents:\n  web:\n    memroy: 1G\n    CPUs: 2\n    limits: {}\n    zone: b\nmemory: 1G\nlimits: {paralelism: 2}\n"), @"
        fleet.yaml:3:5: agents.web.memroy: there is no key `memroy` here
         3 |     memroy: 1G
           |     ^
        hint: did you mean `memory`?
        fleet.yaml:4:5: agents.web.CPUs: there is no key `CPUs` here
         4 |     CPUs: 2
           |     ^
        hint: did you mean `cpus`?
        fleet.yaml:5:5: agents.web.limits: there is no key `limits` here
         5 |     limits: {}
           |     ^
        hint: `limits` is a key of the whole file, beside `agents`
        fleet.yaml:6:5: agents.web.zone: there is no key `zone` here
         6 |     zone: b
           |     ^
        hint: the keys here are profile, replicas, driver, image, cpus, memory, disk, power, labels, env, dependsOn, restart, reconcile, protect, tasks, slots, services, files, packages, networks, user, sudo, cloudInit, secrets, mounts, ports, idle, ttl, snapshots, warm, drift
        fleet.yaml:7:1: memory: there is no key `memory` here
         7 | memory: 1G
           | ^
        hint: `memory` is a key of an agent, a profile or the defaults
        fleet.yaml:8:10: limits.paralelism: there is no key `paralelism` here
         8 | limits: {paralelism: 2}
           |          ^
        hint: did you mean `parallelism`?
        ");
    }

    #[test]
    fn a_wrong_value_is_marked_at_the_value() {
        insta::assert_snapshot!(complaint_of_agent("memory: 1T\ncpus: -1\nreplicas: 1.5\nenv: [a]\ndependsOn: db\nttl: 30\nreconcile: Auto"), @r#"
        fleet.yaml:3:13: agents.web.memory: `1T` is not a size: write a number with K, M or G, such as 512M, 8G or 1.5G
         3 |     memory: 1T
           |             ^
        fleet.yaml:4:11: agents.web.cpus: expected a whole number from 0 to 4294967295, found the number -1
         4 |     cpus: -1
           |           ^
        fleet.yaml:5:15: agents.web.replicas: expected a whole number, found the number 1.5
         5 |     replicas: 1.5
           |               ^
        fleet.yaml:6:10: agents.web.env: expected a map of keys, found a list
         6 |     env: [a]
           |          ^
        fleet.yaml:7:16: agents.web.dependsOn: expected a list of agents, or agents with how far each has to be, found the text "db"
         7 |     dependsOn: db
           |                ^
        hint: a list of one is written [db]
        fleet.yaml:8:10: agents.web.ttl: `30` is not a length of time: write it like 250ms, 90s, 5m, 1h30m or 24h
         8 |     ttl: 30
           |          ^
        fleet.yaml:9:16: agents.web.reconcile: `Auto` is none of auto, manual, paused
         9 |     reconcile: Auto
           |                ^
        hint: did you mean `auto`?
        "#);
    }

    #[test]
    fn a_wrong_item_is_named_with_its_number_also_after_others_were_wrong() {
        insta::assert_snapshot!(complaint_of_agent("dependsOn: [a_b, web, c_d, [x], nobody]"), @"
        fleet.yaml:3:17: agents.web.dependsOn[0]: `a_b` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         3 |     dependsOn: [a_b, web, c_d, [x], nobody]
           |                 ^
        fleet.yaml:3:22: agents.web.dependsOn[1]: `web` waits for itself
         3 |     dependsOn: [a_b, web, c_d, [x], nobody]
           |                      ^
        fleet.yaml:3:27: agents.web.dependsOn[2]: `c_d` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         3 |     dependsOn: [a_b, web, c_d, [x], nobody]
           |                           ^
        fleet.yaml:3:32: agents.web.dependsOn[3]: expected a text, found a list
         3 |     dependsOn: [a_b, web, c_d, [x], nobody]
           |                                ^
        fleet.yaml:3:37: agents.web.dependsOn[4]: there is no agent `nobody` to depend on
         3 |     dependsOn: [a_b, web, c_d, [x], nobody]
           |                                     ^
        ");
    }

    #[test]
    fn a_wrong_key_of_a_map_is_marked_at_the_key() {
        insta::assert_snapshot!(complaint("agents:\n  Web: {tasks: {a_b: {exec: x}}}\n"), @"
        fleet.yaml:2:3: agents.Web: `Web` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         2 |   Web: {tasks: {a_b: {exec: x}}}
           |   ^
        fleet.yaml:2:17: agents.Web.tasks.a_b: `a_b` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         2 |   Web: {tasks: {a_b: {exec: x}}}
           |                 ^
        ");
    }

    #[test]
    fn a_missing_key_is_told_at_its_map() {
        insta::assert_snapshot!(complaint_of_agent("tasks:\n  setup: {cwd: /src}"), @"
        fleet.yaml:4:7: agents.web.tasks.setup: the key `exec` is missing
         4 |       setup: {cwd: /src}
           |       ^
        ");
    }

    #[test]
    fn a_key_with_a_wrong_value_is_not_missing_as_well() {
        insta::assert_snapshot!(complaint_of_agent("tasks:\n  setup: {exec: {a: b}}"), @"
        fleet.yaml:4:21: agents.web.tasks.setup.exec: expected a command: a line for the shell, or a list of program and arguments, found a map of keys
         4 |       setup: {exec: {a: b}}
           |                     ^
        ");
    }

    #[test]
    fn a_fleet_has_a_bounded_number_of_agents() {
        for replicas in ["10001", "4294967295"] {
            let said = complaint(&format!("agents: {{web: {{replicas: {replicas}}}}}"));
            assert!(said.contains("a fleet has at most 10000 agents"), "{said}");
        }
        let said = complaint("agents: {web: {replicas: 6000}, db: {replicas: 6000}}");
        assert!(said.contains("a fleet has at most 10000 agents"), "{said}");
    }

    #[test]
    fn a_planned_key_is_refused_as_planned() {
        insta::assert_snapshot!(complaint_of_agent("health: []"), @"
        fleet.yaml:3:5: agents.web.health: this key is planned: nothing acts on it yet, so it is refused rather than ignored
         3 |     health: []
           |     ^
        ");
    }

    #[test]
    fn what_a_machine_can_not_be_born_with_is_told_where_it_stands() {
        let text = "packages: [git, -y, 'a b']\nuser: root\nsudo: yes\ncloudInit: {hostname: x, runcmd: [ls]}";
        insta::assert_snapshot!(complaint_of_agent(text), @r#"
        fleet.yaml:3:21: agents.web.packages[1]: `-y` is no name of a package: letters, digits, `.`, `+`, `-`, `_`, and a version behind a `=`
         3 |     packages: [git, -y, 'a b']
           |                     ^
        fleet.yaml:3:25: agents.web.packages[2]: `a b` is no name of a package: letters, digits, `.`, `+`, `-`, `_`, and a version behind a `=`
         3 |     packages: [git, -y, 'a b']
           |                         ^
        fleet.yaml:4:11: agents.web.user: nothing runs as `root` from its beginning; write `sudo: true` where the agent has to become root
         4 |     user: root
           |           ^
        fleet.yaml:5:11: agents.web.sudo: expected true or false, found the text "yes"
         5 |     sudo: yes
           |           ^
        hint: write true
        fleet.yaml:6:16: agents.web.cloudInit: `hostname` can't be set in `cloudInit`: the host name is that of the instance
         6 |     cloudInit: {hostname: x, runcmd: [ls]}
           |                ^
        "#);
        insta::assert_snapshot!(complaint_of_agent("driver: local\npackages: [git]"), @"
        fleet.yaml:4:15: agents.web.packages: driver `local` makes no machine, and `packages` would change this host
         4 |     packages: [git]
           |               ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: qemu\nimage: debain"), @"
        fleet.yaml:4:12: agents.web.image: image `debain` is none that driver qemu can make; write `debian`, `debian+cloud-init`, the path of a disk (`/…`, `./…`), or `https://…#sha256=…` with the disk's checksum
         4 |     image: debain
           |            ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: qemu\nimage: https://example.org/disk.img"), @"
        fleet.yaml:4:12: agents.web.image: image `https://example.org/disk.img` has no checksum; add it: `#sha256=` and the 64 digits that its publisher tells
         4 |     image: https://example.org/disk.img
           |            ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: qemu\nmemory: 512\ndisk: 10K"), @"
        fleet.yaml:4:13: agents.web.memory: a machine has at least 128M, and not 512
         4 |     memory: 512
           |             ^
        fleet.yaml:5:11: agents.web.disk: a machine has at least 512M, and not 10K
         5 |     disk: 10K
           |           ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: qemu\nmounts: {src: {source: /srv}}"), @"
        fleet.yaml:4:13: agents.web.mounts: driver `qemu` has no folders of the host in its machines; `vm-agent cp` copies them
         4 |     mounts: {src: {source: /srv}}
           |             ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: multipass\nmounts: {src: /srv, out: {source: /out, writable: true}}"), @"
        fleet.yaml:4:19: agents.web.mounts.src: driver `multipass` can't keep a machine from writing to what it mounts; write `writable: true`, or copy it: `vm-agent cp`
         4 |     mounts: {src: /srv, out: {source: /out, writable: true}}
           |                   ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: qemu\nnetworks: [en0]"), @"
        fleet.yaml:4:15: agents.web.networks: machines of driver `qemu` are in no network of the host; `vm-agent forward` reaches their ports
         4 |     networks: [en0]
           |               ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: multipass\nnetworks: [--bridged]"), @"
        fleet.yaml:4:16: agents.web.networks[0]: `--bridged` is no name of a network: no `,`, no `=` and nothing that can't be seen, and no `-` at its beginning
         4 |     networks: [--bridged]
           |                ^
        ");
        insta::assert_snapshot!(complaint_of_agent("driver: qemu\ncloudInit: {runcmd: [ls]}"), @"
        fleet.yaml:4:16: agents.web.cloudInit: there is no cloud-init in the image `default` of driver `qemu`; write `image: debian+cloud-init`, or another that has it
         4 |     cloudInit: {runcmd: [ls]}
           |                ^
        ");
    }

    #[test]
    fn keys_that_stand_twice_are_all_told_with_both_lines() {
        insta::assert_snapshot!(complaint("agents:\n  web: {}\n  db: {cpus: 1, cpus: 2}\n  web: {cpus: 3}\n  web: {}\n"), @"
        fleet.yaml:3:17: agents.db.cpus: `cpus` is here twice; the first is on line 3
         3 |   db: {cpus: 1, cpus: 2}
           |                 ^
        fleet.yaml:4:3: agents.web: `web` is here twice; the first is on line 2
         4 |   web: {cpus: 3}
           |   ^
        fleet.yaml:5:3: agents.web: `web` is here twice; the first is on line 2
         5 |   web: {}
           |   ^
        ");
    }

    #[test]
    fn the_same_wrong_value_behind_an_alias_is_told_once_where_it_is_written() {
        insta::assert_snapshot!(complaint("agents:\n  web: &base {cpus: lots}\n  db: *base\n  api: {<<: *base, memory: 1G}\n"), @r#"
        fleet.yaml:2:21: agents.web.cpus: expected a whole number, found the text "lots"
         2 |   web: &base {cpus: lots}
           |                     ^
        "#);
    }

    #[test]
    fn very_many_errors_are_cut_short() {
        let keys: String = (0..1000).map(|n| format!("  a{n}: {{cpus: lots}}\n")).collect();
        let diagnostics = parse("fleet.yaml", &format!("agents:\n{keys}")).unwrap_err();
        assert_eq!(diagnostics.len(), FINDINGS_MAX + 1);
        assert_eq!(diagnostics[FINDINGS_MAX].message, "there may be more errors: reading ended here");
    }
}

mod traps {
    use super::*;

    #[test]
    fn numbers_and_truths_where_a_text_is_expected_are_shown_as_yaml_reads_them() {
        let env = "env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}";
        insta::assert_snapshot!(complaint_of_agent(&format!("image: 24.10\nlabels: {{1: a}}\n{env}")), @r#"
        fleet.yaml:3:12: agents.web.image: expected a text, found 24.10, which YAML reads as the number 24.1
         3 |     image: 24.10
           |            ^
        hint: write "24.10"
        fleet.yaml:4:14: agents.web.labels.1: a key is a text, and this is a number
         4 |     labels: {1: a}
           |              ^
        hint: write "1"
        fleet.yaml:5:17: agents.web.env.PORT: expected a text, found the number 8080
         5 |     env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}
           |                 ^
        hint: write "8080"
        fleet.yaml:5:27: agents.web.env.ON: expected a text, found true
         5 |     env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}
           |                           ^
        hint: write "true"
        fleet.yaml:5:42: agents.web.env.VERSION: expected a text, found 1.10, which YAML reads as the number 1.1
         5 |     env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}
           |                                          ^
        hint: write "1.10"
        fleet.yaml:5:53: agents.web.env.BIG: expected a text, found 1e3, which YAML reads as the number 1000.0
         5 |     env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}
           |                                                     ^
        hint: write "1e3"
        fleet.yaml:5:63: agents.web.env.HEX: expected a text, found 0x1F, which YAML reads as the number 31
         5 |     env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}
           |                                                               ^
        hint: write "0x1F"
        fleet.yaml:5:74: agents.web.env.EMPTY: expected a text, found nothing
         5 |     env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}
           |                                                                          ^
        hint: write "" for an empty text
        fleet.yaml:5:78: agents.web.env.NULL: a key is a text, and this is nothing
         5 |     env: {PORT: 8080, ON: true, VERSION: 1.10, BIG: 1e3, HEX: 0x1F, EMPTY: , NULL: ~}
           |                                                                              ^
        hint: write "NULL"
        "#);
    }

    #[test]
    fn what_looks_like_something_else_and_is_a_text_in_yaml_1_2_is_taken_as_written() {
        let text =
            "agents:\n  web: {env: {A: no, B: on, C: yes, D: 0755, E: 010, F: 2024-01-01, G: 1_000, H: 12:30}}\n";
        let fleet = parse("fleet.yaml", text).unwrap();
        let values: Vec<&str> = fleet.agents[&agent("web")].spec.env.values().map(String::as_str).collect();
        assert_eq!(values, ["no", "on", "yes", "0755", "010", "2024-01-01", "1_000", "12:30"]);
    }

    #[test]
    fn yes_and_no_are_no_truths_and_quotes_make_no_numbers() {
        insta::assert_snapshot!(complaint_of_agent("protect: yes\ncpus: \"4\"\nrestart: true"), @r#"
        fleet.yaml:3:14: agents.web.protect: expected true or false, found the text "yes"
         3 |     protect: yes
           |              ^
        hint: write true
        fleet.yaml:4:11: agents.web.cpus: expected a whole number, found the text "4"
         4 |     cpus: "4"
           |           ^
        hint: write 4 without quotes
        fleet.yaml:5:14: agents.web.restart: `true` is none of always, on-failure, never
         5 |     restart: true
           |              ^
        "#);
    }

    #[test]
    fn numbers_among_the_arguments_of_a_command_are_told_one_by_one() {
        insta::assert_snapshot!(complaint_of_agent("tasks:\n  nap: {exec: [sleep, 10, 007, 1.50]}"), @r#"
        fleet.yaml:4:27: agents.web.tasks.nap.exec[1]: expected a text, found the number 10
         4 |       nap: {exec: [sleep, 10, 007, 1.50]}
           |                           ^
        hint: write "10"
        fleet.yaml:4:36: agents.web.tasks.nap.exec[3]: expected a text, found 1.50, which YAML reads as the number 1.5
         4 |       nap: {exec: [sleep, 10, 007, 1.50]}
           |                                    ^
        hint: write "1.50"
        "#);
    }

    #[test]
    fn a_number_that_would_be_no_good_in_quotes_either_is_told_what_is_expected() {
        insta::assert_snapshot!(complaint_of_agent("idle: 30\nttl: 1.5\nprofile: 7"), @"
        fleet.yaml:3:11: agents.web.idle: `30` is not a length of time: write it like 250ms, 90s, 5m, 1h30m or 24h
         3 |     idle: 30
           |           ^
        fleet.yaml:4:10: agents.web.ttl: `1.5` is not a length of time: write it like 250ms, 90s, 5m, 1h30m or 24h
         4 |     ttl: 1.5
           |          ^
        fleet.yaml:5:14: agents.web.profile: `7` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         5 |     profile: 7
           |              ^
        ");
    }

    #[test]
    fn a_tab_can_not_indent() {
        insta::assert_snapshot!(complaint("agents:\n\tweb: {}\n"), @"
        fleet.yaml:2:2: a tab can't indent a line in YAML
         2 | 	web: {}
           | 	^
        hint: indent with spaces
        ");
        insta::assert_snapshot!(complaint("agents:\n  web:\n    cpus: 1\n\t\tmemory: 1G\n"), @"
        fleet.yaml:4:1: a tab can't indent a line in YAML
         4 | 		memory: 1G
           | ^
        hint: indent with spaces
        ");
    }

    #[test]
    fn quotes_and_brackets_without_an_end_are_marked_where_they_begin() {
        insta::assert_snapshot!(complaint("agents:\n  web: {image: \"24.04}\n  db: {}\n"), @r#"
        fleet.yaml:2:16: a quote begins here and never ends
         2 |   web: {image: "24.04}
           |                ^
        hint: add the missing quote
        "#);
        insta::assert_snapshot!(complaint("agents:\n  web: {cpus: 1\n"), @"
        fleet.yaml:2:8: `{` begins here and never ends
         2 |   web: {cpus: 1
           |        ^
        ");
        insta::assert_snapshot!(complaint("agents:\n  web: {cpus: 1\n  db: {}\n"), @"
        fleet.yaml:3:5: expected `,` or `}` here; a bracket of line 2 has not ended
         3 |   db: {}
           |     ^
        hint: a map on one line is `{a: 1, b: 2}`
        ");
        insta::assert_snapshot!(complaint("agents:\n  web: {dependsOn: [db}\n"), @"
        fleet.yaml:2:20: `[` begins and `}` ends: brackets come in pairs
         2 |   web: {dependsOn: [db}
           |                    ^
        ");
    }

    #[test]
    fn keys_that_do_not_line_up_are_told_so() {
        insta::assert_snapshot!(complaint("agents:\n  web:\n    cpus: 1\n      memory: 1G\n"), @"
        fleet.yaml:4:7: this does not line up with what stands before it
         4 |       memory: 1G
           |       ^
        hint: keys of one map begin in the same column, and what belongs to a key is indented further
        ");
        insta::assert_snapshot!(complaint("agents:\n  web:\n    cpus: 1\n   memory: 1G\n"), @"
        fleet.yaml:4:4: this does not line up with what stands before it
         4 |    memory: 1G
           |    ^
        hint: keys of one map begin in the same column, and what belongs to a key is indented further
        ");
    }

    #[test]
    fn a_colon_without_a_blank_and_one_too_many_are_told_apart() {
        insta::assert_snapshot!(complaint("agents:\n  web:\n    cpus:1\n    memory: 1G\n"), @"
        fleet.yaml:3:5: expected a key with a colon and a blank after it
         3 |     cpus:1
           |     ^
        hint: a key is written `key: value`
        ");
        insta::assert_snapshot!(complaint("agents:\n  web:\n    image: ubuntu: 24.04\n"), @r#"
        fleet.yaml:3:18: a value without quotes can't have a colon and a blank in it
         3 |     image: ubuntu: 24.04
           |                  ^
        hint: a value with special characters is written in quotes, such as "a: b"
        "#);
    }

    #[test]
    fn characters_that_mean_something_to_yaml_are_told_to_need_quotes() {
        insta::assert_snapshot!(complaint_of_agent("image: @x"), @r#"
        fleet.yaml:3:12: a value can't begin with `@`
         3 |     image: @x
           |            ^
        hint: a value with special characters is written in quotes, such as "a: b"
        "#);
        insta::assert_snapshot!(complaint_of_agent("image: *latest"), @"
        fleet.yaml:3:12: nothing has been marked with this name by `&`
         3 |     image: *latest
           |            ^
        hint: a text that begins with `*` is written in quotes
        ");
        insta::assert_snapshot!(complaint_of_agent("image: !latest x"), @"
        fleet.yaml:3:12: agents.web.image: the tag `!latest` has no meaning in a fleet file
         3 |     image: !latest x
           |            ^
        hint: a text that begins with `!` is written in quotes
        ");
        insta::assert_snapshot!(complaint_of_agent("image: {{ image }}"), @"
        fleet.yaml:3:13: agents.web.image: a key is a text, and this is a map
         3 |     image: {{ image }}
           |             ^
        hint: a text that begins with a bracket is written in quotes
        ");
    }

    #[test]
    fn a_file_that_says_nothing_is_no_fleet() {
        insta::assert_snapshot!(complaint("# nothing\n"), @"
        fleet.yaml: the file says nothing: a fleet file has at least the key `agents`
        hint: write `agents: {}` for a fleet of none
        ");
        insta::assert_snapshot!(complaint("---\n"), @"
        fleet.yaml:1:4: expected a map of keys such as `agents`, found nothing
         1 | ---
           |    ^
        hint: write `agents: {}` for a fleet of none
        ");
        insta::assert_snapshot!(complaint("agents:\n#  web: {}\n"), @"
        fleet.yaml:1:1: agents: there is nothing under it
         1 | agents:
           | ^
        hint: write `agents: {}` for a fleet of none
        ");
        insta::assert_snapshot!(complaint("name: lab\n"), @"
        fleet.yaml:1:1: the key `agents` is missing
         1 | name: lab
           | ^
        hint: write `agents: {}` for a fleet of none
        ");
    }

    #[test]
    fn a_document_that_is_no_map_is_no_fleet() {
        insta::assert_snapshot!(complaint("- web\n"), @"
        fleet.yaml:1:1: expected a map of keys such as `agents`, found a list
         1 | - web
           | ^
        hint: write `agents: {}` for a fleet of none
        ");
        insta::assert_snapshot!(complaint("web\n"), @r#"
        fleet.yaml:1:1: expected a map of keys such as `agents`, found the text "web"
         1 | web
           | ^
        hint: write `agents: {}` for a fleet of none
        "#);
        insta::assert_snapshot!(complaint("agents: [web]\n"), @"
        fleet.yaml:1:9: agents: expected a map of keys, found a list
         1 | agents: [web]
           |         ^
        ");
    }

    #[test]
    fn a_second_document_is_refused_where_it_begins() {
        insta::assert_snapshot!(complaint("---\nagents: {}\n---\nagents: {}\n"), @"
        fleet.yaml:3:1: a second document begins here; a file has one
         3 | ---
           | ^
        hint: leave `---` out, or put each part into a file of its own and give all of them with `-f`
        ");
    }

    #[test]
    fn characters_that_can_not_be_seen_are_refused() {
        insta::assert_snapshot!(complaint("agents:\n  web: {image: a\u{2028}b}\n"), @r#"
        fleet.yaml:2:17: the character U+2028 can't be seen and may not stand here
         2 |   web: {image: a b}
           |                 ^
        hint: remove it, or write it in double quotes as "\u2028"
        "#);
        insta::assert_snapshot!(complaint("agents: {}\rname: lab\n"), @r#"
        fleet.yaml:1:11: the character U+000D can't be seen and may not stand here
         1 | agents: {}�name: lab
           |           ^
        hint: remove it, or write it in double quotes as "\u000D"
        "#);
        insta::assert_snapshot!(complaint("agents: {}\u{0}\n"), @r#"
        fleet.yaml:1:11: the character U+0000 can't be seen and may not stand here
         1 | agents: {}�
           |           ^
        hint: remove it, or write it in double quotes as "\u0000"
        "#);
    }

    #[test]
    fn a_byte_order_mark_and_foreign_line_ends_move_no_place() {
        let text = "name: é\nagents:\n  web: {cpus: lots}\n";
        let plain = parse("f", text).unwrap_err();
        for variant in [format!("\u{feff}{text}"), text.replace('\n', "\r\n")] {
            assert_eq!(parse("f", &variant).unwrap_err(), plain, "{variant:?}");
        }
    }
}

mod bounds {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn aliases_may_not_make_a_small_file_large() {
        let mut text = "a0: &a0 [laugh, laugh, laugh, laugh, laugh, laugh, laugh, laugh, laugh]\n".to_owned();
        for n in 1..20 {
            let items = vec![format!("*a{}", n - 1); 9].join(", ");
            writeln!(text, "a{n}: &a{n} [{items}]").unwrap();
        }
        let started = std::time::Instant::now();
        insta::assert_snapshot!(complaint(&text), @"
        fleet.yaml:7:15: with its aliases written out the file has more than 10485760 bytes
         7 | a6: &a6 [*a5, *a5, *a5, *a5, *a5, *a5, *a5, *a5, *a5]
           |               ^
        ");
        assert!(started.elapsed().as_secs_f64() < 1.0, "refused before anything is copied");
    }

    #[test]
    fn an_alias_inside_of_what_it_stands_for_is_refused() {
        insta::assert_snapshot!(complaint("agents: &all\n  web: {env: *all}\n"), @"
        fleet.yaml:2:14: an alias can't stand inside of what it stands for
         2 |   web: {env: *all}
           |              ^
        ");
    }

    #[test]
    fn depth_is_bounded_with_and_without_aliases() {
        let nested = |open: &str, close: &str| format!("agents: {}{}\n", open.repeat(100_000), close.repeat(100_000));
        for text in [nested("[", "]"), nested("{a: ", "}"), nested("[", "")] {
            let said = complaint(&text);
            assert!(said.contains("maps and lists lie in each other more than 64 deep"), "{said}");
        }
        let steps: String = (1..100).map(|n| format!("a{n}: &a{n} [*a{}]\n", n - 1)).collect();
        assert!(complaint(&format!("a0: &a0 []\n{steps}")).contains("more than 64 deep"));
    }

    #[test]
    fn a_file_beyond_the_limit_is_not_looked_into() {
        let text = format!("agents: {{}} #{}", "x".repeat(crate::fleet::FILE_MAX));
        insta::assert_snapshot!(complaint(&text), @"fleet.yaml: the file has 10485772 bytes; at most 10485760 are read");
    }
}

mod contradictions {
    use super::*;

    #[test]
    fn they_are_told_with_their_places_next_to_errors_of_reading() {
        insta::assert_snapshot!(complaint("agents:\n  a: {profile: smal, cpus: x}\n  b: {cpus: 0, env: {A-B: x}}\n  c: {dependsOn: [databse, b]}\n  database: {}\nprofiles:\n  small: {}\n"), @r#"
        fleet.yaml:2:16: agents.a.profile: there is no profile `smal`
         2 |   a: {profile: smal, cpus: x}
           |                ^
        hint: did you mean `small`?
        fleet.yaml:2:28: agents.a.cpus: expected a whole number, found the text "x"
         2 |   a: {profile: smal, cpus: x}
           |                            ^
        fleet.yaml:3:13: agents.b.cpus: a machine has at least 1 processor
         3 |   b: {cpus: 0, env: {A-B: x}}
           |             ^
        fleet.yaml:3:27: agents.b.env.A-B: `A-B` is no name for an environment variable
         3 |   b: {cpus: 0, env: {A-B: x}}
           |                           ^
        fleet.yaml:4:19: agents.c.dependsOn[0]: there is no agent `databse` to depend on
         4 |   c: {dependsOn: [databse, b]}
           |                   ^
        hint: did you mean `database`?
        "#);
    }

    #[test]
    fn what_a_profile_or_the_defaults_say_is_told_once_and_there() {
        insta::assert_snapshot!(complaint("defaults: {env: {A-B: x}}\nprofiles:\n  small: {cpus: 0}\nagents:\n  a: {profile: small}\n  b: {profile: small}\n"), @"
        fleet.yaml:1:23: defaults.env.A-B: `A-B` is no name for an environment variable
         1 | defaults: {env: {A-B: x}}
           |                       ^
        fleet.yaml:3:17: profiles.small.cpus: a machine has at least 1 processor
         3 |   small: {cpus: 0}
           |                 ^
        ");
    }

    #[test]
    fn a_cycle_of_dependencies_is_found() {
        insta::assert_snapshot!(complaint("agents:\n  a: {dependsOn: [b]}\n  b: {dependsOn: [c]}\n  c: {dependsOn: [a]}\n"), @"
        fleet.yaml:2:18: agents.a.dependsOn: agents wait for each other: a -> b -> c -> a
         2 |   a: {dependsOn: [b]}
           |                  ^
        ");
    }

    #[test]
    fn cycles_are_told_with_everything_else_that_is_wrong() {
        let file = "agents:\n  a: {dependsOn: [b]}\n  b: {dependsOn: [a]}\n  c: {cpus: 0, dependsOn: [databse]}\n  \
                    x: {dependsOn: [y]}\n  y: {memroy: 1G, replicas: 2, dependsOn: [x]}\n";
        insta::assert_snapshot!(complaint(file), @"
        fleet.yaml:2:18: agents.a.dependsOn: agents wait for each other: a -> b -> a
         2 |   a: {dependsOn: [b]}
           |                  ^
        fleet.yaml:4:13: agents.c.cpus: a machine has at least 1 processor
         4 |   c: {cpus: 0, dependsOn: [databse]}
           |             ^
        fleet.yaml:4:28: agents.c.dependsOn[0]: there is no agent `databse` to depend on
         4 |   c: {cpus: 0, dependsOn: [databse]}
           |                            ^
        fleet.yaml:5:18: agents.x.dependsOn: agents wait for each other: x -> y-2 -> x
         5 |   x: {dependsOn: [y]}
           |                  ^
        fleet.yaml:6:7: agents.y.memroy: there is no key `memroy` here
         6 |   y: {memroy: 1G, replicas: 2, dependsOn: [x]}
           |       ^
        hint: did you mean `memory`?
        ");
    }

    #[test]
    fn what_only_follows_from_another_error_is_not_told() {
        insta::assert_snapshot!(complaint("agents:\n  db: {replicas: two}\n  web: {dependsOn: [db-1]}\nprofiles:\n  Small: {}\n"), @r#"
        fleet.yaml:2:18: agents.db.replicas: expected a whole number, found the text "two"
         2 |   db: {replicas: two}
           |                  ^
        fleet.yaml:5:3: profiles.Small: `Small` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         5 |   Small: {}
           |   ^
        "#);
    }

    #[test]
    fn a_replica_and_an_agent_of_one_name_contradict() {
        assert!(complaint("agents:\n  db: {replicas: 2}\n  db-1: {}\n").contains("two agents would be named `db-1`"));
    }
}

mod several_files {
    use super::*;

    #[test]
    fn their_agents_and_profiles_are_united() {
        let one = file(
            "one.yaml",
            "name: lab\nprofiles: {small: {cpus: 2}}\nagents: {web: {profile: small, dependsOn: [db]}}\n",
        );
        let two = file("two.yaml", "agents: {db: {}}\nprune: never\n");
        let three = file("three.yaml", "defaults: {memory: 2G}\n");
        let fleet = parse_all(&[one, two, three]).unwrap();
        let names: Vec<&str> = fleet.agents.keys().map(AgentName::as_str).collect();
        assert_eq!(names, ["db", "web"]);
        assert_eq!((fleet.name.as_str(), fleet.prune), ("lab", crate::fleet::Prune::Never));
        assert_eq!(fleet.agents[&agent("web")].spec.cpus, 2);
        assert_eq!(fleet.agents[&agent("db")].spec.memory.to_string(), "2G");
    }

    #[test]
    fn what_stands_in_two_of_them_is_told_with_both_places() {
        let one = file("one.yaml", "agents:\n  web: {}\nprofiles: {small: {}}\nlimits: {}\n");
        let two = file("two.yaml", "limits: {}\nprofiles: {small: {}}\nagents:\n  web: {cpus: x}\n");
        insta::assert_snapshot!(sentences(&parse_all(&[one, two]).unwrap_err()), @r#"
        two.yaml:1:1: limits: `limits` is in two files; the first is one.yaml:4:1
         1 | limits: {}
           | ^
        two.yaml:2:12: profiles.small: `small` is in two files; the first is one.yaml:3:12
         2 | profiles: {small: {}}
           |            ^
        two.yaml:4:3: agents.web: `web` is in two files; the first is one.yaml:2:3
         4 |   web: {cpus: x}
           |   ^
        two.yaml:4:15: agents.web.cpus: expected a whole number, found the text "x"
         4 |   web: {cpus: x}
           |               ^
        "#);
    }

    #[test]
    fn each_error_is_told_in_its_own_file() {
        let one = file("one.yaml", "agents:\n  web: {dependsOn: [nobody], profile: big}\n");
        let two = file("two.yaml", "agents:\n  db: {cpus: x}\nprofiles:\n  big: {cpus: 0}\n");
        let three = file("three.yaml", "agents: [\n");
        insta::assert_snapshot!(sentences(&parse_all(&[one.clone(), two.clone()]).unwrap_err()), @r#"
        one.yaml:2:21: agents.web.dependsOn[0]: there is no agent `nobody` to depend on
         2 |   web: {dependsOn: [nobody], profile: big}
           |                     ^
        two.yaml:2:14: agents.db.cpus: expected a whole number, found the text "x"
         2 |   db: {cpus: x}
           |              ^
        two.yaml:4:15: profiles.big.cpus: a machine has at least 1 processor
         4 |   big: {cpus: 0}
           |               ^
        "#);
        let all = parse_all(&[one, two, three]).unwrap_err();
        let files: Vec<&str> = all.iter().map(|diagnostic| diagnostic.file.as_str()).collect();
        assert_eq!(files, ["two.yaml", "three.yaml"], "agents of a file that can't be read may be anybody's");
    }

    #[test]
    fn one_of_them_has_agents() {
        let all = [file("one.yaml", "name: lab\n"), file("two.yaml", "prune: auto\n")];
        insta::assert_snapshot!(sentences(&parse_all(&all).unwrap_err()), @"
        one.yaml:1:1: the key `agents` is missing
         1 | name: lab
           | ^
        hint: write `agents: {}` for a fleet of none
        ");
        assert!(parse_all(&[]).is_err());
    }

    #[test]
    fn the_digest_of_one_is_that_of_its_text_and_of_several_that_of_all_texts() {
        let (one, two) = (file("one.yaml", "agents: {}\n"), file("two.yaml", "name: lab\n"));
        let of = |files: &[SourceFile]| parse_all(files).unwrap().digest;
        assert_eq!(of(std::slice::from_ref(&one)), Some(Digest::of(one.text.as_bytes())));
        let digests = [Digest::of(one.text.as_bytes()), Digest::of(two.text.as_bytes())];
        assert_eq!(of(&[one.clone(), two.clone()]), Some(Digest::of_json(&digests)));
        assert_ne!(of(&[one.clone(), two.clone()]), of(&[two, one]));
    }

    #[test]
    fn host_paths_begin_in_the_folder_of_their_file() {
        let text = "agents:\n  web:\n    image: ./base.img\n    mounts: {/src: ./src, /data: {source: ../data}, /etc: /etc}\n    secrets: {KEY: {file: key}}\nwebhooks: [{url: 'https://example.com', secret: {file: ../hook}}]\n";
        let fleet = parse_all(&[file("one.yaml", text)]).unwrap();
        let spec = &fleet.agents[&agent("web")].spec;
        let sources: Vec<_> = spec.mounts.values().map(|mount| mount.source.to_str().unwrap()).collect();
        assert_eq!(sources, ["/data", "/etc", "/fleets/src"]);
        assert_eq!(spec.image, "/fleets/base.img");
        assert_eq!(spec.secrets["KEY"].to_string(), "the file /fleets/key");
        assert_eq!(fleet.webhooks[0].secret.as_ref().unwrap().to_string(), "the file /hook");
    }

    #[test]
    fn a_relative_host_path_needs_a_folder_to_begin_in() {
        insta::assert_snapshot!(complaint_of_agent("image: ~/x\nmounts: {/src: ./src, /home: {source: ~/x}}"), @"
        fleet.yaml:3:12: agents.web.image: `~` stands for a person's home only in a shell
         3 |     image: ~/x
           |            ^
        hint: write an absolute path
        fleet.yaml:4:20: agents.web.mounts./src: a relative path begins in the folder of its file, and this text has none
         4 |     mounts: {/src: ./src, /home: {source: ~/x}}
           |                    ^
        hint: write an absolute path
        fleet.yaml:4:34: agents.web.mounts./home: `~` stands for a person's home only in a shell
         4 |     mounts: {/src: ./src, /home: {source: ~/x}}
           |                                  ^
        hint: write an absolute path
        ");
    }
}

mod layers {
    use super::*;

    #[test]
    fn they_lie_over_each_other_and_fields_know_where_they_came_from() {
        let text = "
defaults: {driver: local, cpus: 2, env: {A: defaults, B: defaults}}
profiles:
  base: {memory: 2G, env: {B: base}}
  big: {profile: base, cpus: 8}
agents:
  web: {profile: big, env: {C: web}}
";
        let fleet = parse("fleet.yaml", text).unwrap();
        let web = &fleet.agents[&agent("web")];
        assert_eq!((web.spec.cpus, web.spec.memory.to_string().as_str()), (8, "2G"));
        let env: Vec<_> = web.spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=defaults", "B=base", "C=web"]);
        assert_eq!(web.origins[&Field::Driver], Origin::Defaults);
        assert_eq!(web.origins[&Field::Cpus], Origin::Profile("big".parse().unwrap()));
        assert_eq!(web.origins[&Field::Memory], Origin::Profile("base".parse().unwrap()));
        assert_eq!(web.origins[&Field::Env], Origin::Agent);
        assert_eq!(web.origins[&Field::Disk], Origin::BuiltIn);
    }

    #[test]
    fn what_a_machine_is_born_with_is_added_up_and_the_layer_above_wins_where_there_can_be_one() {
        let text = "
defaults: {packages: [git, curl], user: dev, cloudInit: {timezone: UTC, runcmd: [one]}}
agents:
  web: {packages: [ripgrep, git], sudo: true, cloudInit: {runcmd: [two]}}
  db: {user: db}
";
        let fleet = parse("fleet.yaml", text).unwrap();
        let of =
            |name: &str| serde_json::to_value(crate::fleet::Provision::of(&fleet.agents[&agent(name)].spec)).unwrap();
        assert_eq!(
            of("web"),
            serde_json::json!({"user": "dev", "sudo": true, "packages": ["curl", "git", "ripgrep"],
                "cloudInit": {"runcmd": ["two"], "timezone": "UTC"}})
        );
        assert_eq!(of("db")["user"], "db");
        let origins = &fleet.agents[&agent("web")].origins;
        assert_eq!(origins[&Field::User], Origin::Defaults);
        assert_eq!([&origins[&Field::Packages], &origins[&Field::CloudInit]], [&Origin::Agent; 2]);
    }

    #[test]
    fn aliases_and_merges_work_in_any_depth_and_the_map_itself_wins() {
        let text = "
agents:
  a: &a {cpus: 2, memory: 2G}
  b: &b {<<: *a, memory: 3G}
  c: {<<: *b, disk: 9G}
  d: {<<: [{cpus: 5}, *b]}
  e: *b
";
        let fleet = parse("fleet.yaml", text).unwrap();
        let sizes = |name: &str| {
            let spec = &fleet.agents[&agent(name)].spec;
            format!("{} {} {}", spec.cpus, spec.memory, spec.disk)
        };
        assert_eq!(["b", "c", "d", "e"].map(sizes), ["2 3G 5G", "2 3G 9G", "5 3G 5G", "2 3G 5G"]);
        insta::assert_snapshot!(complaint("agents:\n  a: {<<: 5}\n  b: &b {cpus: 1}\n  c: {<<: [*b, x]}\n"), @"
        fleet.yaml:2:11: agents.a.<<: only a map, or a list of maps, can be laid under a map
         2 |   a: {<<: 5}
           |           ^
        hint: write `<<: *name`, and `&name` at the map meant
        fleet.yaml:4:11: agents.c.<<: only a map, or a list of maps, can be laid under a map
         4 |   c: {<<: [*b, x]}
           |           ^
        hint: write `<<: *name`, and `&name` at the map meant
        ");
    }

    #[test]
    fn replicas_have_stable_names_and_stand_for_all_in_dependencies() {
        let text = "agents:\n  db: {replicas: 2}\n  web: {dependsOn: [db]}\n";
        let fleet = parse("fleet.yaml", text).unwrap();
        let names: Vec<&str> = fleet.agents.keys().map(AgentName::as_str).collect();
        assert_eq!(names, ["db-1", "db-2", "web"]);
        let wanted: Vec<&str> = fleet.agents[&agent("web")].spec.depends_on.0.keys().map(AgentName::as_str).collect();
        assert_eq!(wanted, ["db-1", "db-2"]);
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// A valid file with some of everything.
    const WHOLE: &str = r#"# a fleet
name: lab
defaults: {driver: local, cpus: 2, env: {A: 'x y', B: "q\n"}}
profiles:
  small: &small {memory: 1G}
agents:
  web:
    image: "24.04"
    env:
      TEXT: |
        hello
         there
      PORT: '8080' # a port
    dependsOn: [db, cache]
    tasks:
      setup:
        exec: make deps
      two:
        exec:
        - make
        - "all"
        timeout: 5m
        retry: {attempts: 3, on: [failed]}
        when: {after: setup}
      nightly: {type: git:pull, path: src, when: {cron: '0 3 * * *', overlap: queue}}
    slots: 2
    ports: {web: 8080}
  db: {<<: *small, cpus: 3}
  vm: {driver: qemu, image: /disk, packages: [git], user: dev, sudo: true, warm: true, cloudInit: {runcmd: [[ls, "-l"]]}}
  cache:
    <<: [*small, {disk: 9G}]
    labels: {team: a}
    snapshots: {points: [provisioned], schedules: {nightly: {cron: '0 3 * * *', keep: {last: 2}}}}
limits: {parallelism: 3}
messages: {allow: [{from: web, to: {labels: team=a}}]}
webhooks: [{url: 'https://example.com', events: [TaskEnded], secret: {env: S}}]
"#;

    /// The file with some characters taken out, put in or changed.
    fn mutated() -> impl Strategy<Value = String> {
        let characters: Vec<char> = "ab01 :-[]{},#&*!|>'\"%@`?\t\n\r~.<=é東\u{85}".chars().collect();
        let change = (0..WHOLE.len(), 0..3u8, prop::sample::select(characters));
        prop::collection::vec(change, 1..6).prop_map(|changes| {
            let mut text: Vec<char> = WHOLE.chars().collect();
            for (index, kind, character) in changes {
                let index = index % text.len();
                match kind {
                    0 => drop(text.remove(index)),
                    1 => text.insert(index, character),
                    _ => text[index] = character,
                }
            }
            text.into_iter().collect()
        })
    }

    /// Known keys with any values: right and wrong ones of every kind, in any depth.
    fn any_values() -> impl Strategy<Value = serde_yaml::Value> {
        use serde_yaml::Value;
        let words = [
            "a",
            "web",
            "a_b",
            "1G",
            "5m",
            "yes",
            "once",
            "connect",
            "git:clone",
            "build",
            "never",
            "local",
            "",
            "../x",
            "@daily",
        ];
        let word = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::sample::select(words.to_vec()).prop_map(Value::from),
        ];
        let keys = [
            "agents",
            "profiles",
            "defaults",
            "web",
            "db",
            "tasks",
            "services",
            "exec",
            "env",
            "when",
            "cron",
            "cpus",
            "memory",
            "replicas",
            "dependsOn",
            "mounts",
            "source",
            "secrets",
            "file",
            "files",
            "content",
            "drift",
            "idle",
            "after",
            "type",
            "retry",
            "attempts",
            "path",
            "overlap",
            "slots",
            "ports",
            "messages",
            "allow",
            "from",
            "webhooks",
            "url",
            "limits",
            "hub",
            "listen",
            "windows",
            "packages",
            "user",
            "sudo",
            "warm",
            "cloudInit",
            "profile",
            "A_B",
            "probe",
            "restart",
        ];
        word.prop_recursive(6, 64, 6, move |inner| {
            let key = prop::sample::select(keys.to_vec()).prop_map(Value::from);
            prop_oneof![
                1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                4 => prop::collection::vec((key, inner), 0..6)
                    .prop_map(|entries| Value::Mapping(entries.into_iter().collect())),
            ]
        })
    }

    fn check(text: &str) -> Result<(), TestCaseError> {
        let Err(diagnostics) = parse("fleet.yaml", text) else { return Ok(()) };
        prop_assert!(!diagnostics.is_empty() && diagnostics.len() <= FINDINGS_MAX + 1);
        let lines = lines(text.strip_prefix('\u{feff}').unwrap_or(text));
        for diagnostic in diagnostics {
            let shown = diagnostic.to_string();
            let Some(place) = diagnostic.place else { continue };
            let length = lines.get(place.line - 1).map(|line| line.chars().count());
            prop_assert!(length.is_some_and(|length| place.column <= length + 1), "{shown}");
        }
        Ok(())
    }

    #[test]
    fn the_whole_file_is_right() {
        assert_eq!(parse("fleet.yaml", WHOLE).map_err(|wrong| sentences(&wrong)).unwrap().agents.len(), 4);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_at_places_inside_it(text in "\\PC{0,200}|[ab:{}\\[\\]&*<!|>'\"\\-\n\r\t ]{0,80}") {
            check(&text)?;
        }

        #[test]
        fn a_valid_file_with_mistakes_is_read_or_refused_at_places_inside_it(text in mutated()) {
            check(&text)?;
        }

        #[test]
        fn whatever_is_wrong_can_be_taken_out(agent in any_values(), others in any_values()) {
            let entries: serde_yaml::Mapping = [("web".into(), agent)].into_iter().collect();
            let mut root = others.as_mapping().cloned().unwrap_or_default();
            root.insert("agents".into(), entries.into());
            check(&serde_yaml::to_string(&root).unwrap())?;
        }

        #[test]
        fn a_mark_and_line_ends_change_nothing_that_is_read(text in mutated()) {
            let fleet = |text: &str| parse("f", text).map(|fleet| Fleet { digest: None, ..fleet }).map_err(|wrong| sentences(&wrong));
            let plain = text.replace('\r', "");
            let read = fleet(&plain);
            prop_assert_eq!(&fleet(&format!("\u{feff}{plain}")), &read);
            prop_assert_eq!(&fleet(&plain.replace('\n', "\r\n")), &read);
        }
    }
}

mod around_agents {
    use super::*;

    #[test]
    fn slots_and_ports_are_read_and_merged() {
        let text = "
defaults: {slots: 8, ports: {ssh: 22, web: 80}}
agents:
  a: {ports: {web: 8080}}
  b: {slots: 1, ports: [3000, 22]}
";
        let fleet = parse("fleet.yaml", text).unwrap();
        let of = |name: &str| {
            let spec = &fleet.agents[&agent(name)].spec;
            let ports: Vec<String> = spec.ports.0.iter().map(|(name, port)| format!("{name}={port}")).collect();
            (spec.slots, ports.join(" "))
        };
        assert_eq!(of("a"), (8, "ssh=22 web=8080".to_owned()));
        assert_eq!(of("b"), (1, "port-22=22 port-3000=3000 ssh=22 web=80".to_owned()));
        assert_eq!(fleet.agents[&agent("a")].origins[&Field::Slots], Origin::Defaults);
        assert_eq!(fleet.agents[&agent("a")].origins[&Field::Ports], Origin::Agent);
    }

    #[test]
    fn wrong_ports_are_told() {
        insta::assert_snapshot!(complaint("agents:\n  a: {ports: {Web: 80, b: 0, c: 70000}, slots: 0}\n  b: {ports: 80}\n"), @"
        fleet.yaml:2:15: agents.a.ports.Web: `Web` is not a name: a name starts with a letter, goes on with lower-case letters, digits and hyphens, ends with a letter or digit, and has at most 63 characters
         2 |   a: {ports: {Web: 80, b: 0, c: 70000}, slots: 0}
           |               ^
        fleet.yaml:2:27: agents.a.ports.b: expected a whole number from 1 to 65535, found the number 0
         2 |   a: {ports: {Web: 80, b: 0, c: 70000}, slots: 0}
           |                           ^
        fleet.yaml:2:33: agents.a.ports.c: expected a whole number from 1 to 65535, found the number 70000
         2 |   a: {ports: {Web: 80, b: 0, c: 70000}, slots: 0}
           |                                 ^
        fleet.yaml:2:48: agents.a.slots: an agent does from 1 to 64 tasks at a time
         2 |   a: {ports: {Web: 80, b: 0, c: 70000}, slots: 0}
           |                                                ^
        fleet.yaml:3:14: agents.b.ports: expected a map of names and ports, or a list of ports, found the number 80
         3 |   b: {ports: 80}
           |              ^
        ");
    }

    #[test]
    fn whom_nobody_knows_can_not_be_written_to() {
        let text = "
agents: {builder: {}, tester: {replicas: 2}}
messages:
  allow:
  - {from: builder, to: tester-1}
  - {from: bilder, to: tester}
  - {from: nobody-known, to: {label: a}}
  - {from: {labels: 'a,,b'}, too: builder}
  - {from: {labels: team=a}}
";
        insta::assert_snapshot!(complaint(text), @"
        fleet.yaml:6:12: messages.allow[1].from: there is no agent `bilder` in the file
         6 |   - {from: bilder, to: tester}
           |            ^
        hint: did you mean `builder`?
        fleet.yaml:6:24: messages.allow[1].to: `tester` is several agents
         6 |   - {from: bilder, to: tester}
           |                        ^
        hint: write `tester-1` for one of them, or {labels: …} for all
        fleet.yaml:7:26: messages.allow[2].to: the key `labels` is missing
         7 |   - {from: nobody-known, to: {label: a}}
           |                          ^
        fleet.yaml:7:31: messages.allow[2].to.label: there is no key `label` here
         7 |   - {from: nobody-known, to: {label: a}}
           |                               ^
        hint: did you mean `labels`?
        fleet.yaml:8:21: messages.allow[3].from.labels: `` names no label: write KEY=VALUE, KEY!=VALUE, KEY or !KEY, separated by commas
         8 |   - {from: {labels: 'a,,b'}, too: builder}
           |                     ^
        fleet.yaml:8:30: messages.allow[3].too: there is no key `too` here
         8 |   - {from: {labels: 'a,,b'}, too: builder}
           |                              ^
        hint: did you mean `to`?
        fleet.yaml:9:5: messages.allow[4]: the key `to` is missing
         9 |   - {from: {labels: team=a}}
           |     ^
        ");
    }

    #[test]
    fn who_may_write_to_whom_and_who_is_told_of_what_is_in_the_fleet() {
        let text = "
agents: {builder: {}, tester: {labels: {team: test}}}
messages: {allow: [{from: builder, to: {labels: team=test}}]}
webhooks: [{url: 'http://localhost:9/x', events: [TaskEnded], secret: {file: /etc/key}}]
";
        let fleet = parse("fleet.yaml", text).unwrap();
        let rule = &fleet.messages.allow[0];
        let labels = |name: &str| &fleet.agents[&agent(name)].spec.labels;
        assert!(rule.from.includes(&agent("builder"), labels("builder")));
        assert!(rule.to.includes(&agent("tester"), labels("tester")));
        assert!(!rule.to.includes(&agent("builder"), labels("builder")));
        let [hook] = fleet.webhooks.as_slice() else { panic!("{:?}", fleet.webhooks) };
        assert_eq!(hook.url.to_string(), "http://localhost:9/x");
        assert_eq!(hook.events, [crate::event::EventKind::TaskEnded].into());
    }

    #[test]
    fn wrong_webhooks_are_told() {
        let text = "
agents: {}
webhooks:
- {url: 'http://example.com/x'}
- {url: example.com, events: [TaskEnd]}
- {events: [], secret: {file: key}}
";
        insta::assert_snapshot!(complaint(text), @"
        fleet.yaml:4:9: webhooks[0].url: http can be read along the way: write https, which only this host's loopback does without
         4 | - {url: 'http://example.com/x'}
           |         ^
        fleet.yaml:5:9: webhooks[1].url: `example.com` is no address of a webhook: write one such as https://example.com/hooks/fleet
         5 | - {url: example.com, events: [TaskEnd]}
           |         ^
        fleet.yaml:5:31: webhooks[1].events[0]: `TaskEnd` is none of ControllerStarted, ControllerStopped, FleetApplied, FileRejected, FileHeld, FileLost, FileRestored, FleetRolledBack, ClockJumped, StepStarted, StepSucceeded, StepFailed, StepTimedOut, StepGivenUp, StepInterrupted, InstanceFailed, SnapshotTaken, SnapshotDeleted, SnapshotFailed, Restored, Imported, Released, AgentAsleep, AgentAwake, RuntimeJoined, RuntimeConnected, RuntimeLost, RuntimeRefused, IsolationBroken, TaskAccepted, TaskStarted, TaskRetried, TaskEnded, MessageDead, KeyRotated, RuntimeUpgraded, UpgradeFailed, OverrideSet, OverrideCleared, OverrideExpired, OverrideSuperseded, Approved, FleetPaused, FleetResumed, FuseBlown, FuseClosed, DriverLost, DriverBack, WebhookFailed
         5 | - {url: example.com, events: [TaskEnd]}
           |                               ^
        hint: did you mean `TaskEnded`?
        fleet.yaml:6:3: webhooks[2]: the key `url` is missing
         6 | - {events: [], secret: {file: key}}
           |   ^
        ");
    }
}
