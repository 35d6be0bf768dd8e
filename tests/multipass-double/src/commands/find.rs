//! `find`.

use serde_json::{Map, Value, json};

use super::{Context, Format, format};
use crate::args::Arguments;
use crate::failure::{Done, Failure};
use crate::images::{IMAGES, Listed};
use crate::print::yaml;

const BLUEPRINT: (&str, &str, &str) = ("docker", "A Docker environment with Portainer and related tools", "0.4");
const NOTHING: &str = "No images or blueprints found.\n";

/// An image as it is listed.
struct Row {
    key: String,
    aliases: Vec<&'static str>,
    release: &'static str,
    version: &'static str,
    remote: &'static str,
}

/// `find`.
pub(super) fn find(context: &mut Context, arguments: &Arguments) -> Done {
    let format = format(arguments)?;
    let wanted = match arguments.positional.as_slice() {
        [] => "",
        [wanted] => wanted,
        _ => return Err(Failure::usage("Wrong number of arguments")),
    };
    drop(context.daemon("find")?);
    let rows = if arguments.has("only-blueprints") {
        Vec::new()
    } else {
        rows(context, wanted, arguments.has("show-unsupported"))?
    };
    let blueprint = wanted.is_empty() && !arguments.has("only-images") && !context.knobs.images_unreachable;
    match format {
        Format::Json => as_json(context, &rows, blueprint),
        Format::Table => as_table(context, &rows, blueprint),
        Format::Csv => as_csv(context, &rows, blueprint),
        Format::Yaml => as_yaml(context, &rows, blueprint),
    }
    Ok(())
}

fn rows(context: &Context, wanted: &str, old: bool) -> Result<Vec<Row>, Failure> {
    let (remote, string) = wanted.split_once(':').unwrap_or(("", wanted));
    if !matches!(remote, "" | "release" | "daily" | "snapcraft" | "appliance") {
        let text =
            format!("Remote '{remote}' is not found. Please use `multipass find` for supported remotes and images.");
        return Err(Failure::daemon("find", text));
    }
    if context.knobs.images_unreachable {
        return match wanted {
            "" => Err(Failure::daemon("find", "Remote \"\" is unknown or unreachable.")),
            _ => Ok(Vec::new()),
        };
    }
    let row = |listed: &Listed, remote: &'static str, key: &str, aliases: Vec<&'static str>| Row {
        key: if remote.is_empty() { key.to_owned() } else { format!("{remote}:{key}") },
        aliases,
        release: listed.release,
        version: listed.version,
        remote,
    };
    let is_release = |listed: &&Listed| listed.remote.is_empty() && !listed.name.starts_with("core");
    let fits = |listed: &&Listed| listed.name == string || listed.aliases.contains(&string);
    if !string.is_empty() {
        // A string finds the image under that name, and in both remotes where none is named.
        let remotes: &[&'static str] = match remote {
            "" => &["", "daily"],
            "daily" => &["daily"],
            "snapcraft" => &["snapcraft"],
            _ => &[""],
        };
        let found = IMAGES.iter().filter(is_release).filter(fits);
        return Ok(found
            .flat_map(|listed| remotes.iter().map(|remote| row(listed, remote, string, Vec::new())))
            .collect());
    }
    Ok(match remote {
        "daily" => {
            let current = IMAGES.iter().filter(is_release).filter(|listed| !listed.old);
            current.map(|listed| row(listed, "daily", listed.name, listed.aliases.to_vec())).collect()
        }
        "snapcraft" => ["22.04", "24.04"]
            .iter()
            .filter_map(|name| IMAGES.iter().find(|listed| listed.name == *name))
            .map(|listed| {
                let aliases =
                    [listed.name].into_iter().chain(listed.aliases.iter().copied().filter(|alias| *alias != "lts"));
                row(listed, "snapcraft", &format!("core{}", listed.name.trim_end_matches(".04")), aliases.collect())
            })
            .collect(),
        "appliance" => {
            let appliances = IMAGES.iter().filter(|listed| listed.remote == "appliance");
            appliances.map(|listed| row(listed, "appliance", listed.name, Vec::new())).collect()
        }
        _ => {
            let current = IMAGES.iter().filter(|listed| old || !listed.old);
            current.map(|listed| row(listed, listed.remote, listed.name, listed.aliases.to_vec())).collect()
        }
    })
}

fn as_json(context: &mut Context, rows: &[Row], blueprint: bool) {
    let entry = |aliases: &[&str], os: &str, release: &str, remote: &str, version: &str| json!({ "aliases": aliases, "os": os, "release": release, "remote": remote, "version": version });
    let of = |row: &Row| (row.key.clone(), entry(&row.aliases, "Ubuntu", row.release, row.remote, row.version));
    let images: Map<String, Value> = rows.iter().map(of).collect();
    let mut blueprints = Map::new();
    if blueprint {
        let (name, release, version) = BLUEPRINT;
        blueprints.insert(name.to_owned(), entry(&[], "", release, "", version));
    }
    // With a string there is no room for errors.
    let mut told = json!({ "blueprints (deprecated)": blueprints, "images": images });
    told["errors"] = json!([]);
    context.print_json(&told);
}

fn as_table(context: &mut Context, rows: &[Row], blueprint: bool) {
    let mut text = String::new();
    let line = |name: &str, aliases: &str, version: &str, release: &str| {
        format!("{name:<28}{aliases:<18}{version:<17}{release}\n")
    };
    if !rows.is_empty() {
        text += &line("Image", "Aliases", "Version", "Description");
        for row in rows {
            text += &line(&row.key, &row.aliases.join(","), row.version, &format!("Ubuntu {}", row.release));
        }
        text += "\n";
    }
    if blueprint {
        let (name, release, version) = BLUEPRINT;
        text += &line("Blueprint (deprecated)", "Aliases", "Version", "Description");
        text += &line(name, "", version, release);
        text += "\n";
    }
    context.screen.out(if text.is_empty() { NOTHING.to_owned() } else { text });
}

fn as_csv(context: &mut Context, rows: &[Row], blueprint: bool) {
    let mut text = "Image,Remote,Aliases,OS,Release,Version,Type\n".to_owned();
    for Row { key, aliases, release, version, remote } in rows {
        text += &format!("{key},{remote},{},Ubuntu,{release},{version},Cloud Image\n", aliases.join(";"));
    }
    if blueprint {
        let (name, release, version) = BLUEPRINT;
        text += &format!("{name},,,,{release},{version},Blueprint (deprecated)\n");
    }
    context.screen.out(text);
}

fn as_yaml(context: &mut Context, rows: &[Row], blueprint: bool) {
    let mut text = "errors:\n  []\n".to_owned();
    let entry = |key: &str, aliases: &[&str], os: &str, release: &str, version: &str, remote: &str| {
        let aliases: String = match aliases {
            [] => "      []\n".to_owned(),
            all => all.iter().map(|alias| format!("      - {alias}\n")).collect(),
        };
        format!(
            "  {}:\n    aliases:\n{aliases}    os: {}\n    release: {release}\n    version: {version}\n    remote: {}\n",
            yaml(key),
            yaml(os),
            yaml(remote)
        )
    };
    if blueprint {
        let (name, release, version) = BLUEPRINT;
        text += "blueprints (deprecated):\n";
        text += &entry(name, &[], "", release, version, "");
    }
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_by(|one, other| one.key.cmp(&other.key));
    if !sorted.is_empty() {
        text += "images:\n";
    }
    for row in sorted {
        text += &entry(&row.key, &row.aliases, "Ubuntu", row.release, row.version, row.remote);
    }
    context.screen.out(text);
}
