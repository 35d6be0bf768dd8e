//! The OpenAPI document of the API, made from the very routes that are served.
//!
//! Requests and answers are described by schemars 1, in the JSON Schema dialect of OpenAPI 3.1. The
//! router library's own schemas are of an older dialect and of types that ours do not implement, so
//! the schemas are made here and handed to it as plain JSON.

use std::borrow::Cow;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::LazyLock;

use aide::axum::ApiRouter;
use aide::openapi::{MediaType, OpenApi, SchemaObject, SecurityScheme, Tag};
use aide::transform::{TransformOpenApi, TransformOperation};
use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;
use vm_agent_schemas::api::{API_VERSION, Document, Kind};

use crate::controller::Controller;

/// Name of the one way to authenticate.
const TOKEN: &str = "token";

thread_local! {
    /// One generator for all routes, so that two types of one name get two names in the document.
    /// It is of the thread because the router library describes a handler by static functions.
    static SCHEMAS: RefCell<SchemaGenerator> = RefCell::new(generator());
}

fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    settings.into_generator()
}

/// The schema of a type: a reference into the document's components, or the schema itself for a type
/// that is inlined.
pub(super) fn schema_of<T: JsonSchema>() -> SchemaObject {
    as_object(SCHEMAS.with_borrow_mut(|schemas| schemas.subschema_for::<T>().to_value()))
}

/// The schema of a type with nothing referred to elsewhere.
pub(super) fn inline_schema_of<T: JsonSchema>() -> SchemaObject {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    as_object(settings.into_generator().subschema_for::<T>().to_value())
}

fn as_object(schema: Value) -> SchemaObject {
    let json_schema = schema.try_into().expect("a schema is an object or a boolean");
    SchemaObject { json_schema, external_docs: None, example: None }
}

/// A body of this media type, for the `content` of a request or an answer.
pub(super) fn content<T: JsonSchema>(media_type: &str) -> (String, MediaType) {
    (media_type.to_owned(), MediaType { schema: Some(schema_of::<T>()), ..MediaType::default() })
}

/// A [`Document`] as the API describes it: with a name of its own, and with the `kind` that it has.
pub(super) struct Described<T>(PhantomData<T>);

impl<T: Kind + JsonSchema> JsonSchema for Described<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}Document", T::KIND).into()
    }

    fn schema_id() -> Cow<'static, str> {
        format!("{}::{}", module_path!(), Self::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Document::<T>::json_schema(generator);
        schema.remove("description");
        let constants = [
            ("/properties/apiVersion", "The version of these documents.", API_VERSION),
            ("/properties/kind", "What the document is.", T::KIND),
        ];
        for (pointer, description, constant) in constants {
            let field = schema.pointer_mut(pointer).expect("every document has these fields");
            *field = serde_json::json!({"description": description, "const": constant});
        }
        schema
    }
}

/// Describes an operation: its id for generated clients, the part of the API that it belongs to, and
/// what it does.
pub(super) fn operation(
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.id(id).tag(tag).summary(summary)
}

/// [`operation`] with more to say than fits into a summary.
pub(super) fn described(
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    description: &'static str,
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |op| operation(id, tag, summary)(op).description(description)
}

/// The OpenAPI document. Needs no running controller.
#[must_use]
pub fn openapi() -> Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let (_, document) = finish(super::routes::all());
        serde_json::to_value(document).expect("an OpenAPI document is JSON with texts as keys")
    });
    DOCUMENT.clone()
}

/// Parts the described routes into what is served and what describes it.
pub(super) fn finish(routes: ApiRouter<Controller>) -> (Router<Controller>, OpenApi) {
    let mut document = OpenApi::default();
    let router = routes.finish_api_with(&mut document, introduce);
    let schemas = SCHEMAS.with_borrow_mut(|schemas| std::mem::replace(schemas, generator()).take_definitions(true));
    let components = document.components.get_or_insert_default();
    components.schemas.extend(schemas.into_iter().map(|(name, schema)| (name, as_object(schema))));
    components.schemas.sort_keys();
    (router, document)
}

fn introduce(document: TransformOpenApi<'_>) -> TransformOpenApi<'_> {
    let tags = [
        ("agents", "The agents of the fleet, and imperative changes to them."),
        ("fleet", "The fleet file, what differs from it, and what would be done."),
        ("tasks", "Units of work, each with exactly one outcome."),
        ("messages", "Messages between programs: from the host to agents, and from agents."),
        ("controller", "The controller itself."),
        ("tokens", "Who may use this API over TCP."),
    ];
    let document = document
        .title("VM Agent System")
        .version(env!("CARGO_PKG_VERSION"))
        .description(
            "The API of a controller. It is served on a unix socket in the state folder, where file permissions \
             decide who may use it, and on TCP, where every route needs a token. Every JSON answer is a document with \
             `apiVersion` and `kind`; every error is `application/problem+json`.",
        )
        .security_scheme(
            TOKEN,
            SecurityScheme::Http {
                scheme: "bearer".to_owned(),
                bearer_format: None,
                description: Some("A token made with `POST /tokens` through the unix socket.".to_owned()),
                extensions: Default::default(),
            },
        )
        .security_requirement(TOKEN);
    tags.into_iter().fold(document, |document, (name, description)| {
        document.tag(Tag { name: name.to_owned(), description: Some(description.to_owned()), ..Tag::default() })
    })
}

/// Answers with the document.
pub(super) async fn show() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| openapi().to_string());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}
