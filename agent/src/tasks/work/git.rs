//! Work with git repositories: short scripts for `sh` around the `git` of the machine, so that users, signals and
//! timeouts reach them as they reach everything else. What is asked for stands in arguments and never in the text
//! of a script, and behind `--`, so it can't be taken for an option.

use super::Program;

/// Clones beside the place and then renames, so that nobody sees half a clone. `$1` is the repository, `$2` the
/// place, the rest are options.
///
/// What is there already is left as it is if it is a clone of that repository. An empty folder gives way.
const CLONE: &str = r#"
url=$1 place=${2%/}; shift 2
if [ -e "$place/.git" ]; then
    have=$(git -C "$place" config --get remote.origin.url)
    if [ "$have" = "$url" ]; then
        echo "$place is a clone of it already, and is left as it is" >&2
        exit 0
    fi
    echo "$place is a clone of ${have:-something else}, not of $url; remove it, or name another path" >&2
    exit 1
fi
if [ -L "$place" ] || { [ -e "$place" ] && ! [ -d "$place" ]; } ||
    { [ -d "$place" ] && [ -n "$(ls -A -- "$place")" ]; }; then
    echo "$place is there already and is no clone of $url; remove it, or name another path" >&2
    exit 1
fi
folder=$(dirname -- "$place")
mkdir -p -- "$folder" || exit
new=$folder/.vm-agent-clone-$VM_AGENT_TASK
rm -rf -- "$new"
trap 'rm -rf -- "$new"' EXIT
trap 'exit 143' TERM INT HUP
git clone "$@" -- "$url" "$new" || exit
if [ -d "$place" ]; then rmdir -- "$place" || exit; fi
mv -- "$new" "$place"
"#;

/// `$1` is the clone, `$2` the remote and `$3` the branch, where they are not empty. A branch without a remote is one
/// of the remote that the present branch follows.
const PULL: &str = r#"
cd -- "$1" || exit
remote=$2
if [ -z "$remote" ] && [ -n "$3" ]; then
    remote=$(git config --get "branch.$(git symbolic-ref -q --short HEAD).remote") || remote=origin
fi
exec git pull --ff-only --no-rebase -- ${remote:+"$remote"} ${3:+"$3"}
"#;

/// `$1` is the clone, `$2` the remote and `$3` what to push, where they are not empty. The present branch goes under its
/// own name.
const PUSH: &str = r#"
cd -- "$1" || exit
remote=$2
if [ -z "$remote" ]; then
    remote=$(git config --get "branch.$(git symbolic-ref -q --short HEAD).remote") || remote=origin
fi
exec git push --no-mirror -- "$remote" "${3:-HEAD}"
"#;

fn script(script: &str, arguments: impl IntoIterator<Item = String>) -> Program {
    let argv = ["sh", "-c", script.trim(), "git"].map(str::to_owned).into_iter().chain(arguments);
    let mut program = Program::new(argv);
    // There is nobody to answer a question.
    program.env.insert("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned());
    program
}

/// Clones a repository.
pub(super) fn clone(
    url: &str,
    path: Option<&str>,
    reference: Option<&str>,
    depth: Option<u32>,
) -> Result<Program, String> {
    let place = match path {
        Some(path) => path,
        None => last_part(url).ok_or_else(|| format!("`{url}` does not tell what to call the clone; name a path"))?,
    };
    if url.is_empty() || place.is_empty() {
        return Err("there is nothing to clone, or no place for it: url or path is empty".to_owned());
    }
    let place = if place.starts_with('-') { format!("./{place}") } else { place.to_owned() };
    let branch = reference.map(|reference| format!("--branch={reference}"));
    let depth = depth.map(|depth| format!("--depth={depth}"));
    Ok(script(CLONE, [url.to_owned(), place].into_iter().chain(branch).chain(depth)))
}

/// Brings a clone up to date.
pub(super) fn pull(path: Option<&str>, remote: Option<&str>, reference: Option<&str>) -> Result<Program, String> {
    no_force(reference)?;
    Ok(script(
        PULL,
        [path.unwrap_or("."), remote.unwrap_or_default(), reference.unwrap_or_default()].map(str::to_owned),
    ))
}

/// Pushes a branch.
pub(super) fn push(path: Option<&str>, remote: Option<&str>, reference: Option<&str>) -> Result<Program, String> {
    no_force(reference)?;
    Ok(script(
        PUSH,
        [path.unwrap_or("."), remote.unwrap_or_default(), reference.unwrap_or_default()].map(str::to_owned),
    ))
}

/// A plus before a reference is git's sign for force.
fn no_force(reference: Option<&str>) -> Result<(), String> {
    match reference {
        Some(reference) if reference.starts_with('+') => {
            Err(format!("`{reference}` would force, and nothing is forced here; leave the plus out"))
        }
        _ => Ok(()),
    }
}

/// What git itself would call the clone of a repository.
fn last_part(url: &str) -> Option<&str> {
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/.git").unwrap_or(url);
    let part = url.rsplit(['/', ':']).next()?;
    let part = part.strip_suffix(".git").unwrap_or(part);
    (!matches!(part, "" | "." | "..")).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_called_as_git_would_call_it() {
        let names = [
            ("https://example.org/team/app.git", Some("app")),
            ("git@example.org:app", Some("app")),
            ("/srv/app/.git/", Some("app")),
            ("..", None),
            ("https://example.org/..", None),
            ("", None),
        ];
        for (url, name) in names {
            assert_eq!(last_part(url), name, "{url}");
        }
    }

    #[test]
    fn what_is_asked_for_can_not_be_taken_for_an_option() {
        let program = clone("--upload-pack=x", Some("-place"), Some("--bare"), Some(1)).unwrap();
        assert_eq!(program.argv[4..], ["--upload-pack=x", "./-place", "--branch=--bare", "--depth=1"]);
        assert_eq!(program.env["GIT_TERMINAL_PROMPT"], "0");
    }

    #[test]
    fn nothing_is_forced() {
        assert!(push(None, None, Some("+main")).unwrap_err().contains("nothing is forced"));
        assert!(pull(None, None, Some("+main:main")).is_err());
        assert_eq!(push(None, None, None).unwrap().argv[4..], [".", "", ""]);
    }
}
