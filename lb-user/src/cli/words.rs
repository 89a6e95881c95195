//! The word grammar: how command-line words become options, arguments and plain words.
//!
//! Bundles of letters, `=`, `--`, optional arguments; no abbreviations, and a mandatory argument takes the
//! next word whatever it looks like. What the options mean is not decided here.
//! IPVS counterpart: ipvsadm's option library.

use super::options::{self, Argument, OptionRow};

/// Something found on the command line.
#[derive(Debug, Clone, Copy)]
pub enum Token<'a> {
    /// An option with its argument.
    Option(&'static OptionRow, Option<&'a [u8]>),
    /// A plain word.
    Word(&'a [u8]),
}

/// Why a word is not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No such option.
    Unknown,
    /// Its argument is missing.
    Missing,
    /// It takes no argument and has one.
    Unwanted,
}

impl Fault {
    /// The words for it in messages.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "unknown option",
            Self::Missing => "missing argument",
            Self::Unwanted => "option does not take an argument",
        }
    }
}

/// Takes the words apart, left to right.
#[derive(Debug)]
pub struct Words<'a> {
    words: &'a [&'a [u8]],
    next: usize,
    bundle: &'a [u8],
    only_words: bool,
    with_added: bool,
}

impl<'a> Words<'a> {
    /// Starts at the first of the words; `with_added` knows the options that ipvsadm lacks.
    pub fn new(words: &'a [&'a [u8]], with_added: bool) -> Self {
        Self { words, next: 0, bundle: &[], only_words: false, with_added }
    }

    /// The last word that was consumed, which messages name: an option's argument if that stood alone.
    pub fn last_word(&self) -> &'a [u8] {
        self.next.checked_sub(1).map_or(&[], |index| self.words[index])
    }

    fn letter(&mut self) -> Result<Token<'a>, Fault> {
        let letter = self.bundle[0];
        self.bundle = &self.bundle[1..];
        let row = options::by_letter(letter).ok_or(Fault::Unknown)?;
        let attached = match self.bundle {
            [] => None,
            [b'=', value @ ..] => Some(value),
            rest => Some(rest),
        };
        if row.argument == Argument::None {
            return if self.bundle.first() == Some(&b'=') {
                Err(Fault::Unwanted)
            } else {
                Ok(Token::Option(row, None))
            };
        }
        self.bundle = &[];
        self.argument(row, attached)
    }

    fn long(&mut self, text: &'a [u8]) -> Result<Token<'a>, Fault> {
        let (name, attached) = match text.iter().position(|&byte| byte == b'=') {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let row = options::by_name(name, self.with_added).ok_or(Fault::Unknown)?;
        if row.argument == Argument::None {
            return if attached.is_some() { Err(Fault::Unwanted) } else { Ok(Token::Option(row, None)) };
        }
        self.argument(row, attached)
    }

    fn argument(&mut self, row: &'static OptionRow, attached: Option<&'a [u8]>) -> Result<Token<'a>, Fault> {
        if attached.is_some() {
            return Ok(Token::Option(row, attached));
        }
        let next = self.words.get(self.next);
        match (row.argument, next) {
            (Argument::Optional(_, default), Some([b'-', ..]) | None) => {
                Ok(Token::Option(row, Some(default.as_bytes())))
            }
            (_, Some(word)) => {
                self.next += 1;
                Ok(Token::Option(row, Some(word)))
            }
            (_, None) => Err(Fault::Missing),
        }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Result<Token<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.bundle.is_empty() {
            return Some(self.letter());
        }
        loop {
            let word = *self.words.get(self.next)?;
            self.next += 1;
            return Some(match word {
                _ if self.only_words => Ok(Token::Word(word)),
                b"--" => {
                    self.only_words = true;
                    continue;
                }
                [b'-', b'-', name @ ..] => self.long(name),
                [b'-', letters @ ..] if !letters.is_empty() => {
                    self.bundle = letters;
                    self.letter()
                }
                _ => Ok(Token::Word(word)),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Vec<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut found = Vec::new();
        for token in Words::new(&words, false) {
            found.push(match token {
                Ok(Token::Option(row, None)) => row.long.to_string(),
                Ok(Token::Option(row, Some(value))) => {
                    format!("{}={}", row.long, String::from_utf8_lossy(value))
                }
                Ok(Token::Word(word)) => String::from_utf8_lossy(word).into_owned(),
                Err(fault) => {
                    found.push(fault.reason().to_string());
                    break;
                }
            });
        }
        found
    }

    #[test]
    fn bundles_end_at_an_argument() {
        assert_eq!(read(&["-Lnt", "x"]), ["list", "numeric", "tcp-service=x"]);
        assert_eq!(read(&["-mw5"]), ["masquerading", "weight=5"]);
        assert_eq!(read(&["-list"]), ["list", "ipip", "scheduler=t"]);
        assert_eq!(read(&["-w=5", "-t="]), ["weight=5", "tcp-service="]);
    }

    #[test]
    fn an_optional_argument_leaves_options_alone() {
        assert_eq!(read(&["-p", "-s", "rr"]), ["persistent=360", "scheduler=rr"]);
        assert_eq!(read(&["-p", "60"]), ["persistent=60"]);
        assert_eq!(read(&["-p", "--", "-s"]), ["persistent=360", "-s"]);
        assert_eq!(read(&["-w", "-1"]), ["weight=-1"]);
    }

    #[test]
    fn faults() {
        assert_eq!(read(&["--bogus=1"]), ["unknown option"]);
        assert_eq!(read(&["--json"]), ["unknown option"]);
        assert_eq!(read(&["-n=1"]), ["option does not take an argument"]);
        assert_eq!(read(&["-A", "-t"]), ["add-service", "missing argument"]);
    }
}
