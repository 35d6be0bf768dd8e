//! `networks`.

use serde_json::json;

use super::{Context, Format, format, without_names};
use crate::args::Arguments;
use crate::failure::{Done, Failure};

/// The interfaces of the host, and their kinds.
pub(super) const NETWORKS: [&str; 2] = ["br0", "mpqemubr0"];

/// `networks`: two bridges, one of them Multipass' own.
pub(super) fn networks(context: &mut Context, arguments: &Arguments) -> Done {
    let format = format(arguments)?;
    without_names(arguments)?;
    drop(context.daemon("networks")?);
    if !context.knobs.has("networks") {
        return Err(Failure::daemon("networks", "The networks feature is not implemented on this backend."));
    }
    let text = match format {
        Format::Json => {
            let list = NETWORKS.map(|name| json!({ "description": "Network bridge", "name": name, "type": "bridge" }));
            context.print_json(&json!({ "list": list }));
            return Ok(());
        }
        Format::Table => NETWORKS.iter().fold("Name        Type     Description\n".to_owned(), |text, name| {
            text + &format!("{name:<12}{:<9}Network bridge\n", "bridge")
        }),
        Format::Yaml => {
            NETWORKS.map(|name| format!("{name}:\n  - type: bridge\n    description: Network bridge\n")).concat()
        }
        Format::Csv => NETWORKS.iter().fold("Name,Type,Description\n".to_owned(), |text, name| {
            text + &format!("{name},bridge,\"Network bridge\"\n")
        }),
    };
    context.screen.out(text);
    Ok(())
}
