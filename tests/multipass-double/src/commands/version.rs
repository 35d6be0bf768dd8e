//! What the client can say by itself.

use serde_json::json;

use super::{Context, Format, format, without_names};
use crate::args::Arguments;
use crate::daemon;
use crate::failure::{Done, Failure};

/// `version`: always 0; without the daemon's version where nobody listens.
pub(super) fn version(context: &mut Context, arguments: &Arguments) -> Done {
    without_names(arguments)?;
    let format = format(arguments)?;
    let own = context.knobs.version.text();
    let theirs = daemon::reach(&context.home, &context.knobs, "version")
        .ok()
        .map(|()| context.knobs.daemon_version.clone().unwrap_or_else(|| own.to_owned()));
    let text = match (format, theirs) {
        (Format::Json, theirs) => {
            let mut told = json!({ "multipass": own });
            if let Some(theirs) = theirs {
                told["multipassd"] = theirs.into();
            }
            context.print_json(&told);
            return Ok(());
        }
        (Format::Table, Some(theirs)) => format!("multipass   {own}\nmultipassd  {theirs}\n"),
        (Format::Table, None) => format!("multipass   {own}\n"),
        (Format::Yaml, Some(theirs)) => format!("multipass: {own}\nmultipassd: {theirs}\n"),
        (Format::Yaml, None) => format!("multipass: {own}\n"),
        (Format::Csv, theirs) => {
            format!("Multipass,Multipassd,Title,Description,URL\n{own},{},,,\n", theirs.unwrap_or_default())
        }
    };
    context.screen.out(text);
    Ok(())
}

/// `aliases`: there are none.
pub(super) fn aliases(context: &mut Context, arguments: &Arguments) -> Done {
    without_names(arguments)?;
    match format(arguments)? {
        Format::Table => context.screen.out("No aliases defined.\n"),
        Format::Json => context.print_json(&json!({ "active-context": "default", "contexts": { "default": {} } })),
        Format::Yaml => context.screen.out("active_context: default\naliases:\n  default: ~\n"),
        Format::Csv => context.screen.out("Alias,Instance,Command,Working directory,Context\n"),
    }
    Ok(())
}

/// `authenticate`: no passphrase is ever set.
pub(super) fn authenticate(context: &mut Context, arguments: &Arguments) -> Done {
    if arguments.positional.is_empty() {
        // It asks, and nobody answers.
        context.screen.out("Please enter passphrase: ");
        return Err(Failure::usage("Failed to read value"));
    }
    daemon::reach(&context.home, &context.knobs, "authenticate")?;
    let text = "Passphrase is not set. Please `multipass set local.passphrase` with a trusted client.";
    Err(Failure::daemon("authenticate", text))
}
