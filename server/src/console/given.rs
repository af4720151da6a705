//! What a request gives: the query of a URL, a part of its path, a form. Every parameter has a meaning, or the request is refused
//! in the words of who asks and says which there are.

use anyhow::Result;
use axum::Form;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use serde::de::DeserializeOwned;
use tracing::debug;

use super::auth::language_of;
use crate::i18n::Language;
use crate::said::said;

/// What a page asks for of a form, a path or a query. The library would say in English what is wrong with it.
pub(crate) struct Taken<E>(pub(crate) E);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Taken<Form<T>> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let t = language_of(request.headers());
        let given = Form::from_request(request, state).await;
        given
            .map(Self)
            .map_err(|wrong| not_wanted(t, wrong.status(), &wrong.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Taken<Path<T>> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let given = Path::from_request_parts(parts, state).await;
        let t = language_of(&parts.headers);
        given
            .map(Self)
            .map_err(|wrong| not_wanted(t, wrong.status(), &wrong.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Taken<Query<T>> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let given = Query::from_request_parts(parts, state).await;
        let t = language_of(&parts.headers);
        given
            .map(Self)
            .map_err(|wrong| not_wanted(t, wrong.status(), &wrong.body_text()))
    }
}

/// Nobody sees it who uses the pages as they are; what exactly is wrong is for who writes a program.
fn not_wanted(t: Language, status: StatusCode, wrong: &str) -> Response {
    debug!(wrong, "a request is not what a page asks for");
    (status, format!("{}\n", t.text("refused.form"))).into_response()
}

/// The parameters of a request, as they stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Given {
    type Rejection = core::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let given = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        // What cannot be read is not understood either.
        Ok(Self(given.map_or_else(
            |_| {
                vec![(
                    parts.uri.query().unwrap_or_default().to_owned(),
                    String::new(),
                )]
            },
            |Query(given)| given,
        )))
    }
}

impl Given {
    /// Refuses parameters that are not among these, and those that are given twice.
    ///
    /// # Errors
    /// One has no meaning here; the error names those that have.
    pub(crate) fn only(&self, names: &[&str]) -> Result<()> {
        for (at, (name, _)) in self.0.iter().enumerate() {
            if !names.contains(&name.as_str()) {
                return Err(match names {
                    [] => said!("param.none", name),
                    names => said!("param.unknown", name, names.join(", ")),
                }
                .into());
            }
            if self.0.iter().take(at).any(|(before, _)| before == name) {
                return Err(said!("param.twice", name).into());
            }
        }
        Ok(())
    }

    /// The value of a parameter, if it is given and not empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let given = self.0.iter().find(|(given, _)| given == name);
        given
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// The same as a number.
    ///
    /// # Errors
    /// It is none, or is larger than `max`.
    pub(crate) fn number(&self, name: &str, max: u64) -> Result<Option<u64>> {
        let number = self.text(name).map(|text| {
            let number = text.parse::<u64>().ok().filter(|number| *number <= max);
            number.ok_or_else(|| said!("param.number", name, text, max))
        });
        Ok(number.transpose()?)
    }

    /// The same as one of these words.
    ///
    /// # Errors
    /// It is none of them.
    pub(crate) fn word(&self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>> {
        let word = self.text(name).map(|text| {
            let word = words.iter().copied().find(|word| *word == text);
            word.ok_or_else(|| said!("param.word", name, text, words.join(", ")))
        });
        Ok(word.transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(query: &str) -> Given {
        let uri = format!("/api/v1/search?{query}").parse().unwrap();
        Given(Query::try_from_uri(&uri).unwrap().0)
    }

    #[test]
    fn a_parameter_without_a_meaning_is_refused_with_those_that_have_one() {
        let error = given("q=x&offset=7").only(&["q", "range"]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("offset") && error.contains("q, range"),
            "{error}"
        );
        assert!(given("q=x&q=y").only(&["q"]).is_err());
        assert!(given("q=x").only(&[]).is_err());
        given("q=x&range=").only(&["q", "range"]).unwrap();
    }

    #[test]
    fn a_value_that_is_not_understood_is_refused() {
        let given = given("limit=x&more=101&range=2h&empty=&right=100");
        assert!(given.number("limit", 100).is_err());
        assert!(
            given
                .number("more", 100)
                .unwrap_err()
                .to_string()
                .contains("100")
        );
        let error = given.word("range", &["1h", "24h"]).unwrap_err().to_string();
        assert!(error.contains("2h") && error.contains("1h, 24h"), "{error}");
        assert_eq!(given.number("right", 100).unwrap(), Some(100));
        assert_eq!((given.text("empty"), given.text("absent")), (None, None));
    }
}
