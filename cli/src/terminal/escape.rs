//! The keys by which a person leaves a terminal in an agent: Enter, `~`, `.`, as those of ssh.

/// What to type, for people.
pub(crate) const KEYS: &str = "Enter ~ .";

/// Where in the keys a person is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Somewhere in a line.
    Inside,
    /// At the beginning of a line.
    Begin,
    /// After a `~` at the beginning of a line, which is not passed on yet.
    Tilde,
}

/// Looks for the escape in what is typed.
#[derive(Debug)]
pub(crate) struct Escape {
    at: At,
}

impl Default for Escape {
    fn default() -> Self {
        Self { at: At::Begin }
    }
}

impl Escape {
    /// What of these keys is to be passed on, and whether the person leaves after that.
    pub(crate) fn pass(&mut self, keys: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(keys.len() + 1);
        for &key in keys {
            self.at = match (self.at, key) {
                (At::Begin, b'~') => At::Tilde,
                (At::Tilde, b'.') => return (passed, true),
                (At::Tilde, b'~') => {
                    passed.push(key);
                    At::Inside
                }
                (at, _) => {
                    if at == At::Tilde {
                        passed.push(b'~');
                    }
                    passed.push(key);
                    if matches!(key, b'\r' | b'\n') { At::Begin } else { At::Inside }
                }
            };
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is passed on of keys that come one by one, and whether they lead out.
    fn typed(keys: &str) -> (String, bool) {
        let mut escape = Escape::default();
        let mut passed = Vec::new();
        for key in keys.bytes() {
            let (more, left) = escape.pass(&[key]);
            passed.extend(more);
            if left {
                return (String::from_utf8(passed).unwrap(), true);
            }
        }
        (String::from_utf8(passed).unwrap(), false)
    }

    #[test]
    fn a_tilde_and_a_dot_at_the_beginning_of_a_line_lead_out() {
        for (keys, passed) in [("~.", ""), ("ls\r~.rest", "ls\r"), ("\r\r~.", "\r\r")] {
            assert_eq!(typed(keys), (passed.to_owned(), true), "{keys:?}");
        }
    }

    #[test]
    fn every_other_tilde_is_passed_on() {
        for (keys, passed) in [("cd ~.", "cd ~."), ("~a.", "~a."), ("~~.", "~."), ("\r~\r~b", "\r~\r~b")] {
            assert_eq!(typed(keys), (passed.to_owned(), false), "{keys:?}");
        }
    }

    #[test]
    fn keys_that_come_at_once_are_read_as_one_by_one() {
        assert_eq!(Escape::default().pass(b"exit\r~.more"), (b"exit\r".to_vec(), true));
    }
}
