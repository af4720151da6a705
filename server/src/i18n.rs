//! The words of the console and of the commands, in English, Italian and French.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::said::{Arg, Refused, Said};

/// A language of the console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Language {
    En,
    It,
    Fr,
}

impl Language {
    pub(crate) const ALL: [Self; 3] = [Self::En, Self::It, Self::Fr];

    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::It => "it",
            Self::Fr => "fr",
        }
    }

    pub(crate) fn from_code(code: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|language| language.code() == code)
    }

    /// The first language of an `Accept-Language` header that we speak; else English.
    pub(crate) fn accepted(header: &str) -> Self {
        let mut wanted = header.split([',', ';']).map(str::trim);
        wanted
            .find_map(|tag| Self::from_code(tag.split('-').next()?))
            .unwrap_or(Self::En)
    }

    /// The language of whoever runs this program, as the environment says it: `LC_ALL`, `LC_MESSAGES`, `LANG`.
    pub(crate) fn of_environment() -> Self {
        let names = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter();
        let values = names.filter_map(|name| std::env::var(name).ok());
        Self::of_locale(values)
    }

    /// The language of the first of these that says anything.
    fn of_locale(mut values: impl Iterator<Item = String>) -> Self {
        let said = values.find(|value| !value.is_empty()).unwrap_or_default();
        let code = said.split(['_', '.', '@']).next().unwrap_or_default();
        Self::from_code(code).unwrap_or(Self::En)
    }

    fn texts(self) -> &'static BTreeMap<String, String> {
        static TEXTS: OnceLock<[BTreeMap<String, String>; 3]> = OnceLock::new();
        let [en, it, fr] = TEXTS.get_or_init(|| {
            [
                include_str!("../i18n/en.toml"),
                include_str!("../i18n/it.toml"),
                include_str!("../i18n/fr.toml"),
            ]
            .map(|text| toml::from_str(text).expect("the catalogues are checked by a test"))
        });
        match self {
            Self::En => en,
            Self::It => it,
            Self::Fr => fr,
        }
    }

    /// The text called `key`; a test makes sure there is one.
    pub(crate) fn text(self, key: &str) -> &'static str {
        self.texts().get(key).map_or("?", String::as_str)
    }

    /// The text called `key` with `{}` replaced by `value`.
    pub(crate) fn with(self, key: &str, value: impl ToString) -> String {
        self.text(key).replace("{}", &value.to_string())
    }

    /// A sentence with what fills it.
    pub(crate) fn say(self, said: &Said) -> String {
        let Some(mut rest) = self.texts().get(&said.id).map(String::as_str) else {
            // What a later version wrote is at least named.
            return self.with("said.unknown", &said.id);
        };
        let mut out = String::new();
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let place = after.split_once('}');
            let place =
                place.and_then(|(number, after)| Some((number.parse::<usize>().ok()?, after)));
            let Some((number, after)) = place else {
                out.push('{');
                rest = after;
                continue;
            };
            match said.args.get(number.wrapping_sub(1)) {
                Some(Arg::Text(text)) => out.push_str(text),
                Some(Arg::Number(number)) => out.push_str(&self.number(*number)),
                Some(Arg::Said(said)) => out.push_str(&self.say(said)),
                None => out.push('?'),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    /// What an error says: a sentence of the catalogues in this language; anything else as the server's log has it, and
    /// that it is that.
    pub(crate) fn refusal(self, error: &anyhow::Error) -> String {
        let refused = error.downcast_ref().map(|Refused(said)| said);
        match (refused.or_else(|| error.downcast_ref()), self) {
            (Some(said), _) => self.say(said),
            (None, Self::En) => format!("{error:#}"),
            (None, _) => self.with("refused.as_logged", format!("{error:#}")),
        }
    }

    /// The word for the state of an agent.
    pub(crate) fn state(self, state: &str) -> &'static str {
        self.text(&format!("state.{state}"))
    }

    /// The words for a time range.
    pub(crate) fn range(self, range: &str) -> &'static str {
        self.text(&format!("range.{range}"))
    }

    /// A number with its thousands apart.
    pub(crate) fn number(self, number: u64) -> String {
        let separator = match self {
            Self::En => ",",
            Self::It => ".",
            Self::Fr => "\u{202f}",
        };
        let digits = number.to_string();
        let mut out = String::new();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                out.push_str(separator);
            }
            out.push(digit);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_has_every_text() {
        let keys: Vec<&String> = Language::En.texts().keys().collect();
        assert!(keys.len() > 50);
        for language in Language::ALL {
            assert_eq!(
                language.texts().keys().collect::<Vec<_>>(),
                keys,
                "{}",
                language.code()
            );
            for (key, text) in language.texts() {
                assert!(!text.trim().is_empty(), "{key}");
                let holes = |text: &str| {
                    let places = (1..10).map(|n| usize::from(text.contains(&format!("{{{n}}}"))));
                    [text.matches("{}").count()]
                        .into_iter()
                        .chain(places)
                        .collect::<Vec<_>>()
                };
                assert_eq!(
                    holes(text),
                    holes(Language::En.text(key)),
                    "{key} in {}",
                    language.code()
                );
            }
        }
    }

    #[test]
    fn every_key_of_the_templates_is_in_the_catalogue() {
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/templates")).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for part in text
                .split("t.text(\"")
                .skip(1)
                .chain(text.split("t.with(\"").skip(1))
            {
                let key = part.split('"').next().unwrap();
                assert!(Language::En.texts().contains_key(key), "{key}");
            }
        }
    }

    #[test]
    fn every_sentence_of_the_sources_is_in_the_catalogue_and_filled() {
        let mut dirs = vec![std::path::PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src"
        ))];
        let mut seen = 0;
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                for call in text.split(concat!("said", "!(")).skip(1) {
                    let Some(call) = call.trim_start().strip_prefix('"') else {
                        continue;
                    };
                    let (key, after) = call.split_once('"').unwrap();
                    let known = Language::En.texts().get(key);
                    let known = known.unwrap_or_else(|| panic!("{key} of {}", path.display()));
                    let places = (1..10)
                        .filter(|n| known.contains(&format!("{{{n}}}")))
                        .count();
                    assert_eq!(arguments(after), places, "{key} of {}", path.display());
                    seen += 1;
                }
            }
        }
        assert!(seen > 20, "{seen}");
    }

    /// How many arguments follow, up to the parenthesis that ends the call.
    fn arguments(call: &str) -> usize {
        let (mut depth, mut count, mut pending, mut in_text) = (0, 0, false, false);
        for c in call.chars() {
            match c {
                '"' => in_text = !in_text,
                _ if in_text => {}
                '(' | '[' | '{' => depth += 1,
                ')' if depth == 0 => break,
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => pending = true,
                _ => {}
            }
            if pending && !c.is_whitespace() && c != ',' {
                (pending, count) = (false, count + 1);
            }
        }
        count
    }

    /// Alarms, troubles, refusals, ends of answers: each sentence that a page can show.
    #[test]
    fn no_sentence_of_another_language_is_in_english() {
        const ENGLISH: [&str; 11] = [
            "the", "must", "there", "is", "not", "and", "was", "has", "of", "with", "it",
        ];
        for language in [Language::It, Language::Fr] {
            for (key, text) in language.texts() {
                let words = text.to_lowercase();
                let mut words = words.split(|c: char| !c.is_alphanumeric() && c != '’');
                let found = words.find(|word| ENGLISH.contains(word));
                assert_eq!(found, None, "{key} in {}: {text}", language.code());
            }
        }
    }

    #[test]
    fn a_sentence_is_worded_for_its_reader() {
        let inner = crate::said::said!("refused.busy");
        let said = Said::new(
            "time.as_utc",
            vec!["--from".into(), "{2}".into(), 1234_u64.into()],
        );
        let [en, it, fr] = Language::ALL.map(|t| t.say(&said));
        // What fills a place fills no other.
        assert!(
            en.contains("--from") && en.contains("{2}") && en.contains("1,234"),
            "{en}"
        );
        assert!(it.contains("1.234") && en != it && it != fr, "{it} {fr}");
        assert_eq!(Language::It.say(&inner), Language::It.text("refused.busy"));
        let unknown = Language::Fr.say(&Said::new("of.tomorrow", Vec::new()));
        assert!(unknown.contains("of.tomorrow"), "{unknown}");
        let json = serde_json::to_string(&said).unwrap();
        assert_eq!(serde_json::from_str::<Said>(&json).unwrap(), said);
    }

    #[test]
    fn a_command_speaks_as_its_environment_says() {
        let of = |values: [&str; 3]| Language::of_locale(values.map(str::to_owned).into_iter());
        assert_eq!(of(["", "", "it_IT.UTF-8"]), Language::It);
        assert_eq!(of(["fr", "", "it_IT"]), Language::Fr);
        assert_eq!(of(["", "de_DE", "it"]), Language::En);
        assert_eq!(of(["C.UTF-8", "", ""]), Language::En);
    }

    #[test]
    fn numbers_are_grouped_as_people_read_them() {
        assert_eq!(Language::En.number(1_234_567), "1,234,567");
        assert_eq!(Language::It.number(999), "999");
        assert_eq!(
            Language::accepted("fr-CH, fr;q=0.9, en;q=0.8"),
            Language::Fr
        );
        assert_eq!(Language::accepted("de"), Language::En);
    }
}
