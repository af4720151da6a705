//! Answers of a store: what is no object is bounded.
//!
//! ```text
//! request ─▶ the library's client ─▶ answer ─▶ an object: handed on as it comes │ anything else: so many bytes, or an error
//! ```
//!
//! Lists, errors and credentials are read into memory as a whole. A store that never ends one would fill it.

use std::future::Future;
use std::pin::Pin;

use http_body_util::{BodyExt as _, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

/// Makes clients whose answers are bounded.
#[derive(Debug, Default)]
pub(super) struct Bounded;

impl HttpConnector for Bounded {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Bounding(client)))
    }
}

#[derive(Debug)]
struct Bounding(HttpClient);

impl HttpService for Bounding {
    fn call<'service, 'answer>(
        &'service self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'answer>>
    where
        'service: 'answer,
        Self: 'answer,
    {
        Box::pin(async move {
            // Of objects the client asks by their names alone.
            let is_of_object = request.method() == "GET" && request.uri().query().is_none();
            let answer = self.0.execute(request).await?;
            if is_of_object && answer.status().is_success() {
                return Ok(answer);
            }
            Ok(answer.map(bounded))
        })
    }
}

/// The same body, which ends with an error after [`ANSWER_LEN_MAX`].
fn bounded(body: HttpResponseBody) -> HttpResponseBody {
    let body = Limited::new(body, ANSWER_LEN_MAX);
    HttpResponseBody::new(body.map_err(|error| match error.downcast::<HttpError>() {
        Ok(error) => *error,
        Err(error) => {
            let max = ANSWER_LEN_MAX >> 20;
            let said = format!("an answer of the store is longer than {max} MiB: {error}");
            HttpError::new(HttpErrorKind::Decode, std::io::Error::other(said))
        }
    }))
}

/// A page of a list has a thousand names of at most a kilobyte.
const ANSWER_LEN_MAX: usize = 8 << 20;
