//! Sentences that are kept as which one it is and what fills it, and worded when somebody reads them.
//!
//! ```text
//! said!("query.operator", "OR") ─▶ error, alarm, end of an answer ─▶ [i18n] ─▶ a page, a command, a mail
//! ```
//!
//! An alarm is raised when nobody looks and read by people of three languages: it is stored as [`Said`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bounds;
use crate::i18n::Language;

/// A sentence of the catalogues: its key, and what fills it. A test looks each of them up.
macro_rules! said {
    ($id:literal $(, $arg:expr)* $(,)?) => {
        $crate::said::Said::new($id, vec![$($crate::said::Arg::from($arg)),*])
    };
}
pub(crate) use said;

/// A sentence: its key in the catalogues of words, and what fills its places `{1}`, `{2}`, ...
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Said {
    pub(crate) id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) args: Vec<Arg>,
}

/// What fills a place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Arg {
    /// Written as the reader's language writes numbers.
    Number(u64),
    /// A name, a time, or the words of somebody else: the same in every language.
    Text(String),
    /// A sentence in a sentence.
    Said(Box<Said>),
}

impl Said {
    pub(crate) fn new(id: &str, args: Vec<Arg>) -> Self {
        Self {
            id: id.to_owned(),
            args,
        }
    }

    /// The same with no text in it longer than `bytes_max`.
    pub(crate) fn cut(mut self, bytes_max: usize) -> Self {
        for arg in &mut self.args {
            match arg {
                Arg::Number(_) => {}
                Arg::Text(text) => *text = bounds::cut(text, bytes_max),
                Arg::Said(said) => **said = said.as_ref().clone().cut(bytes_max),
            }
        }
        self
    }
}

/// What policy or permission refuses, not what could not be done: commands end with exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) Said);

/// Words of somebody else: the system's, or an earlier version's.
impl From<String> for Said {
    fn from(text: String) -> Self {
        said!("as_said", text)
    }
}

/// What fills a place, by itself: how records keep what earlier versions wrote as a text.
impl From<Arg> for Said {
    fn from(arg: Arg) -> Self {
        match arg {
            Arg::Said(said) => *said,
            other @ (Arg::Text(_) | Arg::Number(_)) => Self::new("as_said", vec![other]),
        }
    }
}

impl From<&str> for Said {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Arg {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Arg {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<u64> for Arg {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Arg {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<Said> for Arg {
    fn from(said: Said) -> Self {
        Self::Said(Box::new(said))
    }
}

/// In English, as the server's own log has it.
impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Language::En.say(self))
    }
}

impl std::error::Error for Said {}
