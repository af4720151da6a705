//! The words of the console, in English, Italian and French.

use std::collections::BTreeMap;
use std::sync::OnceLock;

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

    fn texts(self) -> &'static BTreeMap<String, String> {
        static TEXTS: OnceLock<[BTreeMap<String, String>; 3]> = OnceLock::new();
        let [en, it, fr] = TEXTS.get_or_init(|| {
            [
                include_str!("../../i18n/en.toml"),
                include_str!("../../i18n/it.toml"),
                include_str!("../../i18n/fr.toml"),
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
                let holes = |text: &str| text.matches("{}").count();
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
