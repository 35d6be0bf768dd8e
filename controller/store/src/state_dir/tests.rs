use std::net::{Ipv4Addr, SocketAddr};

use tempfile::tempdir;
use vm_agent_schemas::api::Addresses;
use vm_agent_schemas::ids::Life;

use super::*;

fn controller_file(life: u64) -> ControllerFile {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
    let addresses = Addresses { socket: "/s/api.sock".into(), hub: address, api: address, dashboard: address };
    ControllerFile { pid: 7, version: "1".into(), fleet: "lab".parse().unwrap(), life: Life(life), addresses }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_folder_is_made_for_its_owner_alone() {
    let temp = tempdir().unwrap();
    let dir = StateDir::open(&temp.path().join("deep/state")).unwrap();
    assert_eq!(mode(dir.path()), 0o700);
    assert!(dir.database().starts_with(dir.path()));
}

#[test]
fn an_empty_folder_is_closed_to_others() {
    let temp = tempdir().unwrap();
    fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    assert_eq!(mode(dir.path()), 0o700);
}

#[test]
fn somebody_else_s_folder_is_left_as_it_is() {
    let temp = tempdir().unwrap();
    fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(temp.path().join("letter.txt"), "Dear").unwrap();
    let error = StateDir::open(temp.path()).unwrap_err();
    assert!(matches!(error, StateDirError::Foreign { .. }), "{error}");
    assert_eq!(mode(temp.path()), 0o755);
    assert!(!temp.path().join(LOCK).exists());
}

#[test]
fn a_second_opener_is_refused_until_the_first_lets_go() {
    let temp = tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let error = StateDir::open(temp.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(temp.path().to_str().unwrap()), "{text}");
    assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
    drop(dir);
    StateDir::open(temp.path()).unwrap();
}

#[test]
fn a_living_controller_is_told_from_a_file_left_behind() {
    let temp = tempdir().unwrap();
    assert!(!is_locked(&temp.path().join("nowhere")));
    let dir = StateDir::open(temp.path()).unwrap();
    dir.write_controller_file(&controller_file(1)).unwrap();
    assert!(is_locked(temp.path()));
    drop(dir);
    assert!(!is_locked(temp.path()));
    assert_eq!(read_controller_file(temp.path()).unwrap(), Some(controller_file(1)));
}

#[test]
fn who_only_asks_does_not_keep_a_controller_from_starting() {
    let temp = tempdir().unwrap();
    drop(StateDir::open(temp.path()).unwrap());
    let asking = File::open(temp.path().join(LOCK)).unwrap();
    asking.try_lock_shared().unwrap();
    assert!(!is_locked(temp.path()));
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| StateDir::open(temp.path()));
        drop(asking);
        starting.join().unwrap().unwrap();
    });
}

#[test]
fn the_controller_file_is_replaced_whole_and_removed() {
    let temp = tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    assert_eq!(dir.read_controller_file().unwrap(), None);
    // What a crash may have left of an earlier attempt.
    fs::write(dir.join("controller.json.new"), "{".repeat(10_000)).unwrap();
    for life in [1, 2] {
        dir.write_controller_file(&controller_file(life)).unwrap();
        assert_eq!(read_controller_file(temp.path()).unwrap(), Some(controller_file(life)));
    }
    assert_eq!(mode(&dir.join(CONTROLLER_FILE)), 0o600);
    dir.remove_controller_file().unwrap();
    dir.remove_controller_file().unwrap();
    assert_eq!(dir.read_controller_file().unwrap(), None);
}

#[test]
fn a_controller_file_that_is_none_is_an_error_that_names_it() {
    let temp = tempdir().unwrap();
    fs::write(temp.path().join(CONTROLLER_FILE), "nonsense").unwrap();
    let error = read_controller_file(temp.path()).unwrap_err();
    assert!(error.to_string().contains("controller.json"), "{error}");
}
