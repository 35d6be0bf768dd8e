//! What the tests of drivers have in common.

use std::path::PathBuf;
use std::process::Command;

/// The program of an example of this crate. Cargo builds those along with all tests of the crate, and not with one that
/// is asked for alone: then what is missing is built here.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let path = folder.join("examples").join(name);
    if !path.exists() {
        let profile = folder.file_name().filter(|name| *name != "debug").unwrap_or("dev".as_ref());
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--locked", "--package", env!("CARGO_PKG_NAME"), "--example", name]);
        let done = build.arg("--profile").arg(profile).status().unwrap();
        assert!(done.success() && path.exists(), "{} can't be built: {build:?}", path.display());
    }
    path
}
