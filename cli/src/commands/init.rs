use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::file::FILE_NAME;

/// The fleet file that a new fleet begins with.
const TEMPLATE: &str = include_str!("init.yaml");
/// The schema beside it, which its first line names.
const SCHEMA_NAME: &str = "fleet.schema.json";

/// Write a fleet file to begin with, and its schema for editors beside it
///
/// It is valid as it stands, runs anywhere, and says in comments what else there is.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The folder [default: the current one]
    #[arg(value_name = "DIR", default_value = ".", hide_default_value = true)]
    folder: PathBuf,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(context: &mut Context, args: &InitArgs) -> CommandResult {
    let schema = format!("{:#}\n", vm_agent_schemas::fleet::json_schema().as_value());
    let files = [(args.folder.join(SCHEMA_NAME), schema.as_str()), (args.folder.join(FILE_NAME), TEMPLATE)];
    let there: Vec<String> =
        files.iter().filter(|(path, _)| path.exists()).map(|(path, _)| format!("`{}`", path.display())).collect();
    if !args.force && !there.is_empty() {
        let verb = if there.len() == 1 { "is" } else { "are" };
        let sentence = format!("{} {verb} there already; nothing was written", there.join(" and "));
        return Err(CommandError::new(Exit::CONFLICT, sentence).hint("`--force` overwrites what is there"));
    }
    let failed =
        |path: &Path, error: &io::Error| CommandError::io(format_args!("`{}` can't be written", path.display()), error);
    std::fs::create_dir_all(&args.folder).map_err(|error| failed(&args.folder, &error))?;
    for (path, text) in &files {
        std::fs::write(path, text).map_err(|error| failed(path, &error))?;
        context.ui.print(path.display())?;
    }
    context.ui.hint("`vm-agent up` brings it up; `vm-agent explain agents` says what else an agent can have")?;
    Ok(Exit::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of the template that is a suggestion, as it would be used. Prose has one blank after its
    /// `#`; a suggestion has none, or more than one.
    fn suggested(line: &str) -> Option<String> {
        let (before, after) = line.split_once('#')?;
        let prose = after.is_empty() || after.starts_with(' ') && !after.starts_with("  ");
        (before.trim().is_empty() && !prose).then(|| format!("{before}{after}"))
    }

    #[test]
    fn the_first_line_names_the_schema_and_every_suggestion_in_it_is_valid() {
        assert_eq!(TEMPLATE.lines().next(), Some(format!("# yaml-language-server: $schema={SCHEMA_NAME}").as_str()));
        let lines: Vec<String> =
            TEMPLATE.lines().map(|line| suggested(line).unwrap_or_else(|| line.to_owned())).collect();
        let text = lines.join("\n");
        assert!(text.contains("\n    mounts:") && text.contains("\n  worker:"), "{text}");
        let path = Path::new("/somewhere/fleet.yaml").to_owned();
        let file = vm_agent_schemas::fleet::SourceFile { name: "init".into(), path: Some(path), text };
        if let Err(wrong) = vm_agent_schemas::fleet::parse_all(&[file]) {
            panic!("{}", wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        }
    }
}
