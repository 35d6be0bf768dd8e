//! What handlers take from a request. Whatever is wrong with it becomes a problem, never plain text.

use std::str::FromStr;

use aide::OperationInput;
use aide::generate::GenContext;
use aide::openapi::{Operation, Parameter, ParameterData, ParameterSchemaOrContent, PathStyle, RequestBody};
use aide::operation::{ParamLocation, add_parameters, parameters_from_schema, set_body};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use vm_agent_schemas::api::{Problem, ProblemCode};
use vm_agent_schemas::fleet::FILE_MAX;
use vm_agent_schemas::ids::{ErrandId, MessageId, Revision, TaskId, TokenId};
use vm_agent_schemas::intent::OverridePath;
use vm_agent_schemas::names::{AgentName, SnapshotName};

use super::answer::Refusal;
use super::openapi::{content, inline_schema_of};

/// Largest request body, in bytes: the largest fleet file, and room for the request around it.
///
/// A file in JSON is longer than the file itself where characters are escaped; a file so large that
/// this matters is refused by its own limit soon after.
pub(super) const BODY_MAX: usize = FILE_MAX + 64 * 1024;

fn invalid(reason: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::Invalid, reason)
}

/// Something that a path names.
pub(super) trait PathSegment: Sized + JsonSchema {
    /// The parameter's name in the path.
    const NAME: &'static str;

    /// Reads it, or says in a sentence why it can't be read.
    fn read(text: &str) -> Result<Self, String>;
}

impl PathSegment for AgentName {
    const NAME: &'static str = "name";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: vm_agent_schemas::names::InvalidName| error.to_string())
    }
}

impl PathSegment for SnapshotName {
    const NAME: &'static str = "snapshot";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: vm_agent_schemas::names::InvalidName| error.to_string())
    }
}

impl PathSegment for ErrandId {
    const NAME: &'static str = "id";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not the id of what was asked of snapshots: it is a UUID"))
    }
}

impl PathSegment for TaskId {
    const NAME: &'static str = "id";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not the id of a task: it is a UUID"))
    }
}

impl PathSegment for MessageId {
    const NAME: &'static str = "id";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not the id of a message: it is a UUID"))
    }
}

impl PathSegment for TokenId {
    const NAME: &'static str = "id";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not the id of a token: it is a UUID, and not the token itself"))
    }
}

impl PathSegment for Revision {
    const NAME: &'static str = "revision";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("`{text}` is not the number of a revision"))
    }
}

impl PathSegment for OverridePath {
    const NAME: &'static str = "path";

    fn read(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|path| path.as_str() == text);
        known.ok_or_else(|| {
            format!("`{text}` is nothing that is overridden: it is {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

/// The beginning of an approval's id.
#[derive(Debug, JsonSchema)]
#[schemars(inline, transparent)]
pub(super) struct ApprovalPrefix(#[schemars(regex(pattern = "^[0-9a-f]{4,64}$"))] pub(super) String);

impl PathSegment for ApprovalPrefix {
    const NAME: &'static str = "id";

    fn read(text: &str) -> Result<Self, String> {
        let valid =
            (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let sentence = || format!("`{text}` is not the beginning of an approval's id: 4 to 64 hexadecimal digits");
        valid.then(|| Self(text.to_owned())).ok_or_else(sentence)
    }
}

/// One parameter of a path, found by its name.
pub(super) struct Segment<T>(pub T);

impl<S: Send + Sync, T: PathSegment + Send> FromRequestParts<S> for Segment<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let all = RawPathParams::from_request_parts(parts, state).await;
        let all = all.map_err(|rejection| invalid(rejection.body_text()))?;
        let text = all.iter().find(|(name, _)| *name == T::NAME).map(|(_, text)| text).unwrap_or_default();
        T::read(text).map(Self).map_err(|reason| invalid(reason).into())
    }
}

impl<T: PathSegment> OperationInput for Segment<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let parameter_data = ParameterData {
            name: T::NAME.to_owned(),
            description: None,
            required: true,
            deprecated: None,
            format: ParameterSchemaOrContent::Schema(inline_schema_of::<T>()),
            example: None,
            examples: Default::default(),
            explode: None,
            extensions: Default::default(),
        };
        add_parameters(context, operation, [Parameter::Path { parameter_data, style: PathStyle::Simple }]);
    }
}

/// The query of a URL.
pub(super) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query: Result<_, QueryRejection> = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        match query {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(invalid(rejection.body_text()).into()),
        }
    }
}

impl<T: JsonSchema> OperationInput for Query<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let schema = inline_schema_of::<T>().json_schema;
        let parameters = parameters_from_schema(context, schema, ParamLocation::Query);
        add_parameters(context, operation, parameters);
    }
}

/// A JSON body.
///
/// The body alone counts and its content type is not asked for: who can send it has shown a token or
/// may write to the socket, so a browser's form can't.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        parse(&read(request, state).await?).map(Self)
    }
}

impl<T: JsonSchema> OperationInput for Body<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        describe_body::<T>(context, operation, true);
    }
}

/// A JSON body that may be left out, which asks for the default.
pub(super) struct OptionalBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = read(request, state).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { parse(&bytes).map(Self) }
    }
}

impl<T: JsonSchema> OperationInput for OptionalBody<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        describe_body::<T>(context, operation, false);
    }
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Refusal> {
    let bytes: Result<Bytes, BytesRejection> = Bytes::from_request(request, state).await;
    bytes.map_err(|rejection| match rejection.status() {
        status @ StatusCode::PAYLOAD_TOO_LARGE => {
            let problem = invalid(format!("the request has more than {BODY_MAX} bytes"));
            Refusal::with_status(status, problem.remedy("Send less: a fleet file may have at most 10 MiB."))
        }
        _ => invalid(rejection.body_text()).into(),
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let parsed: Result<Json<T>, JsonRejection> = Json::from_bytes(bytes);
    match parsed {
        Ok(Json(value)) => Ok(value),
        Err(rejection) => {
            let problem = invalid(rejection.body_text());
            Err(problem.remedy("`GET /openapi.json` describes the body of every request.").into())
        }
    }
}

fn describe_body<T: JsonSchema>(context: &mut GenContext, operation: &mut Operation, required: bool) {
    let content = [content::<T>("application/json")].into_iter().collect();
    set_body(context, operation, RequestBody { description: None, content, required, extensions: Default::default() });
}

/// The id in the header `Last-Event-ID`, by which a client of a stream says how far it came.
pub(super) struct LastEventId<T>(pub Option<T>);

impl<S: Send + Sync, T: FromStr> FromRequestParts<S> for LastEventId<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let Some(value) = parts.headers.get("last-event-id") else { return Ok(Self(None)) };
        let id = value.to_str().ok().and_then(|text| text.parse().ok());
        id.map(|id| Self(Some(id))).ok_or_else(|| invalid("`Last-Event-ID` is not the id of an event").into())
    }
}

impl<T: JsonSchema> OperationInput for LastEventId<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let parameter_data = ParameterData {
            name: "Last-Event-ID".to_owned(),
            description: Some("How far a stream was followed before. Goes before what the query says.".to_owned()),
            required: false,
            deprecated: None,
            format: ParameterSchemaOrContent::Schema(inline_schema_of::<T>()),
            example: None,
            examples: Default::default(),
            explode: None,
            extensions: Default::default(),
        };
        let style = aide::openapi::HeaderStyle::Simple;
        add_parameters(context, operation, [Parameter::Header { parameter_data, style }]);
    }
}

/// The token of `Authorization: Bearer <token>`.
pub(super) fn bearer(headers: &axum::http::HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
