//! Answers: documents, and problems in place of every error.

use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{Operation, Response as Answered};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use vm_agent_schemas::api::{Document, Kind, Problem, ProblemCode};

use super::openapi::{Described, content};

/// What a handler answers.
pub(super) type Answer<T, const STATUS: u16 = 200> = Result<Doc<T, STATUS>, Refusal>;

/// A document, sent with this HTTP status.
pub(super) struct Doc<T, const STATUS: u16 = 200>(pub T);

impl<T: Kind + Serialize, const STATUS: u16> IntoResponse for Doc<T, STATUS> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(STATUS).expect("handlers name statuses that exist");
        (status, Json(Document::from(self.0))).into_response()
    }
}

impl<T: Kind + JsonSchema, const STATUS: u16> OperationOutput for Doc<T, STATUS> {
    type Inner = T;

    fn operation_response(_: &mut GenContext, _: &mut Operation) -> Option<Answered> {
        Some(Answered {
            description: "The document asked for.".to_owned(),
            content: [content::<Described<T>>("application/json")].into_iter().collect(),
            ..Answered::default()
        })
    }

    fn inferred_responses(context: &mut GenContext, operation: &mut Operation) -> Vec<(Option<u16>, Answered)> {
        Self::operation_response(context, operation).map(|response| (Some(STATUS), response)).into_iter().collect()
    }
}

/// Nothing to say but that it is done.
pub(super) struct Done;

impl IntoResponse for Done {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl OperationOutput for Done {
    type Inner = ();

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Answered)> {
        vec![(Some(204), Answered { description: "Done.".to_owned(), ..Answered::default() })]
    }
}

/// Text for machines that do not read JSON.
pub(super) struct Text {
    /// Its media type.
    pub media_type: &'static str,
    /// The text.
    pub text: String,
}

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, self.media_type)], self.text).into_response()
    }
}

impl OperationOutput for Text {
    type Inner = String;

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Answered)> {
        let response = Answered {
            description: "The text asked for.".to_owned(),
            content: [content::<String>("text/plain")].into_iter().collect(),
            ..Answered::default()
        };
        vec![(Some(200), response)]
    }
}

/// A problem on its way to the client.
#[derive(Debug)]
pub(super) struct Refusal(pub Problem);

impl Refusal {
    /// A problem whose status says more than its code does.
    pub(super) fn with_status(status: StatusCode, mut problem: Problem) -> Self {
        problem.status = status.as_u16();
        Self(problem)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl OperationOutput for Refusal {
    type Inner = Problem;

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Answered)> {
        let response = Answered {
            description: "What is wrong, and what to do about it.".to_owned(),
            content: [content::<Problem>("application/problem+json")].into_iter().collect(),
            ..Answered::default()
        };
        vec![(None, response)]
    }
}

/// Nothing is served under that path.
pub(super) async fn unknown_path(uri: axum::http::Uri) -> Refusal {
    let reason = format!("there is nothing under `{}`", uri.path());
    Problem::new(ProblemCode::NotFound, reason).remedy("`GET /openapi.json` describes every path.").into()
}

/// The path is served, and not with this method.
pub(super) async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    let reason = format!("`{}` does not answer to {method}", uri.path());
    let problem =
        Problem::new(ProblemCode::Invalid, reason).remedy("The header `Allow` names the methods that it answers to.");
    Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, problem)
}
