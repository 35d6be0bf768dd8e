//! Arguments as Qt's parser reads them, and what it says of those that it can't.

/// An option that a command knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// All its names, short and long.
    pub(crate) names: &'static [&'static str],
    /// Whether a value follows.
    pub(crate) valued: bool,
}

/// An option without a value.
pub(crate) const fn flag(names: &'static [&'static str]) -> Known {
    Known { names, valued: false }
}

/// An option with a value.
pub(crate) const fn valued(names: &'static [&'static str]) -> Known {
    Known { names, valued: true }
}

/// What every command knows.
const GENERAL: [Known; 2] = [flag(&["h", "help"]), flag(&["v", "verbose"])];

/// What was given.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// What is no option.
    pub(crate) positional: Vec<String>,
    options: Vec<(&'static str, String)>,
    /// Whether there was a `--`.
    pub(crate) dashes: bool,
}

impl Arguments {
    /// Whether an option was given. It goes by the first of its names.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(known, _)| *known == name)
    }

    /// The value of an option, the last one given.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// All values of an option.
    pub(crate) fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads what follows the command.
pub(crate) fn parse(known: &[Known], given: &[String]) -> Result<Arguments, String> {
    let find = |name: &str| known.iter().chain(&GENERAL).find(|option| option.names.contains(&name)).copied();
    let mut read = Arguments::default();
    let (mut wrong, mut unknown) = (None, Vec::new());
    let mut given = given.iter();
    while let Some(word) = given.next() {
        if word == "--" {
            read.dashes = true;
            read.positional.extend(given.by_ref().cloned());
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) =
                long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value.to_owned())));
            match find(name) {
                None => unknown.push(name.to_owned()),
                Some(option) if option.valued => match value.or_else(|| given.next().cloned()) {
                    Some(value) => read.options.push((option.names[0], value)),
                    None => drop(wrong.get_or_insert(format!("Missing value after '--{name}'."))),
                },
                Some(_) if value.is_some() => drop(wrong.get_or_insert(format!("Unexpected value after '--{name}'."))),
                Some(option) => read.options.push((option.names[0], String::new())),
            }
        } else if let Some(short) = word.strip_prefix('-').filter(|short| !short.is_empty()) {
            for (place, letter) in short.char_indices() {
                let rest = &short[place + letter.len_utf8()..];
                match find(&letter.to_string()) {
                    None => unknown.push(letter.to_string()),
                    Some(option) if option.valued => {
                        let attached = (!rest.is_empty()).then(|| rest.trim_start_matches('=').to_owned());
                        match attached.or_else(|| given.next().cloned()) {
                            Some(value) => read.options.push((option.names[0], value)),
                            None => drop(wrong.get_or_insert(format!("Missing value after '-{letter}'."))),
                        }
                        break;
                    }
                    Some(option) => read.options.push((option.names[0], String::new())),
                }
            }
        } else {
            read.positional.push(word.clone());
        }
    }
    match (wrong, unknown.as_slice()) {
        (Some(wrong), _) => Err(wrong),
        (None, []) => Ok(read),
        (None, [one]) => Err(format!("Unknown option '{one}'.")),
        (None, several) => Err(format!("Unknown options: {}.", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_anywhere_and_take_their_values_as_they_come() {
        let known = [valued(&["cpus", "c"]), valued(&["name", "n"]), flag(&["purge", "p"])];
        let read = parse(&known, &words("one -c -1 --name=a -p -vv two -- --x")).unwrap();
        assert_eq!(read.positional, ["one", "two", "--x"]);
        assert_eq!((read.value("cpus"), read.value("name")), (Some("-1"), Some("a")));
        assert!(read.has("purge") && read.has("v") && read.dashes);
    }

    #[test]
    fn what_is_wrong_is_said_as_qt_says_it() {
        let known = [valued(&["format"])];
        let say = |text: &str| parse(&known, &words(text)).unwrap_err();
        assert_eq!(say("--bogus"), "Unknown option 'bogus'.");
        assert_eq!(say("one ls -la"), "Unknown options: l, a.");
        assert_eq!(say("--format"), "Missing value after '--format'.");
    }
}
