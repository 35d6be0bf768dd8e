//! Building, testing and deploying a project: by the command that was given, or as its files say.

use std::fs;
use std::path::Path;

use super::Program;

/// What is to be done with a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Build,
    Test,
    Deploy,
}

impl Goal {
    const fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Test => "test",
            Self::Deploy => "deploy",
        }
    }
}

/// The command that reaches a goal, given what the file says; nothing where this kind of project knows none.
type Command = fn(Goal, &str) -> Option<Vec<&'static str>>;

/// The files that tell what kind of project it is. The first that is there and knows the goal decides.
const MARKERS: [(&str, Command); 5] = [
    ("Makefile", |goal, text| match goal {
        Goal::Build if !has_target(text, "build") => Some(vec!["make"]),
        goal => Some(vec!["make", goal.name()]),
    }),
    ("Cargo.toml", |goal, _| match goal {
        Goal::Build => Some(vec!["cargo", "build"]),
        Goal::Test => Some(vec!["cargo", "test"]),
        Goal::Deploy => None,
    }),
    ("package.json", |goal, _| Some(vec!["npm", "run", goal.name()])),
    ("go.mod", |goal, _| match goal {
        Goal::Build => Some(vec!["go", "build", "./..."]),
        Goal::Test => Some(vec!["go", "test", "./..."]),
        Goal::Deploy => None,
    }),
    ("pyproject.toml", |goal, _| match goal {
        Goal::Build => Some(vec!["python3", "-m", "build"]),
        Goal::Test => Some(vec!["python3", "-m", "pytest"]),
        Goal::Deploy => None,
    }),
];

/// What reaches a goal in this folder.
pub(super) fn program(goal: Goal, argv: &[String], folder: &Path) -> Result<Program, String> {
    if !argv.is_empty() {
        return Ok(Program::new(argv));
    }
    let found = MARKERS.iter().find_map(|(name, command)| {
        let file = folder.join(name);
        file.is_file().then(|| command(goal, &fs::read_to_string(file).unwrap_or_default()))?
    });
    found.map(Program::new).ok_or_else(|| {
        let names = MARKERS.map(|(name, _)| name).join(", ");
        let (folder, goal) = (folder.display(), goal.name());
        format!("none of {names} in `{folder}` tells how to {goal} it; write the command after `--`, or as `exec` in the fleet file")
    })
}

/// Whether a makefile has a rule for a target, as far as its text tells.
fn has_target(makefile: &str, target: &str) -> bool {
    makefile.lines().any(|line| {
        let Some((targets, rest)) = line.split_once(':') else { return false };
        let assigns = rest.starts_with('=') || rest.starts_with(":=");
        !line.starts_with(['\t', '#']) && !assigns && targets.split_whitespace().any(|it| it == target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(goal: Goal, files: &[(&str, &str)]) -> Result<String, String> {
        let place = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(place.path().join(name), text).unwrap());
        program(goal, &[], place.path()).map(|program| program.argv.join(" "))
    }

    #[test]
    fn the_files_of_a_project_tell_how_to_reach_a_goal() {
        use Goal::{Build, Deploy, Test};
        let all = ["pyproject.toml", "go.mod", "package.json", "Cargo.toml"].map(|name| (name, ""));
        let table = [
            ("python3 -m build", "python3 -m pytest", None),
            ("go build ./...", "go test ./...", None),
            ("npm run build", "npm run test", Some("npm run deploy")),
            ("cargo build", "cargo test", Some("npm run deploy")),
        ];
        for (count, (build, test, deploy)) in table.into_iter().enumerate() {
            let files = &all[..=count];
            assert_eq!(argv(Build, files).unwrap(), build);
            assert_eq!(argv(Test, files).unwrap(), test);
            assert_eq!(argv(Deploy, files).ok().as_deref(), deploy);
        }
        assert_eq!(argv(Deploy, &[("Makefile", ""), ("package.json", "")]).unwrap(), "make deploy");
    }

    #[test]
    fn make_builds_its_first_target_where_none_is_called_build() {
        let build = |makefile| argv(Goal::Build, &[("Makefile", makefile)]).unwrap();
        for with in ["build:\n\tcc a.c\n", "all build : a\n", "x:\nbuild:: y\n"] {
            assert_eq!(build(with), "make build", "{with}");
        }
        for without in ["all:\n\techo build: no\n", "build := out\n", "build ::= out\n", "# build: no\n", "rebuild:\n"]
        {
            assert_eq!(build(without), "make", "{without}");
        }
    }

    #[test]
    fn a_project_that_tells_nothing_is_refused_and_a_command_needs_no_project() {
        let error = argv(Goal::Deploy, &[("Cargo.toml", "")]).unwrap_err();
        assert!(
            error.starts_with("none of Makefile, Cargo.toml, package.json, go.mod, pyproject.toml in `"),
            "{error}"
        );
        assert!(
            error.ends_with("tells how to deploy it; write the command after `--`, or as `exec` in the fleet file"),
            "{error}"
        );
        let given = ["ship".to_owned()];
        assert_eq!(program(Goal::Deploy, &given, Path::new("/no/such")).unwrap().argv, given);
    }
}
