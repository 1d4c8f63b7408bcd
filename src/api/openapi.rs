//! The document of the API: OpenAPI 3.1, made from the routes and the types of their bodies.
//!
//! Invariant: a route of `/v1` is registered with its description or not at all, so the document says what the router
//! does. What nodes ask of each other (`/internal`) is not in it.

use super::problem::{PROBLEM_TYPE, Problem};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response as HttpResponse};
use bytes::Bytes;
use std::sync::LazyLock;
use utoipa::PartialSchema;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{
    Components, ContentBuilder, Info, InfoBuilder, License, OpenApi, PathItem, Ref, RefOr, Response, ResponseBuilder,
};

const PROBLEM: &str = "Problem";
const ABOUT: &str = "Every node answers; a node outside the metadata service passes requests on. Errors are \
application/problem+json with a stable `code`, what happened, why, and what to do. Fields may be added to answers at \
any time; requests with unknown fields are refused.";

static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_json().unwrap_or_default().into());

/// This document
#[utoipa::path(
    get, path = "/v1/openapi.json", operation_id = "get_openapi", tag = "api",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub(super) async fn show() -> HttpResponse {
    ([(CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

/// The document.
pub fn document() -> OpenApi {
    let mut document = super::member_routes().merge(super::local_routes()).into_openapi();
    document.info = info();
    let components = document.components.get_or_insert_with(Components::new);
    components.schemas.insert(PROBLEM.into(), Problem::schema());
    for kind in ["BadRequest", "Failure"] {
        components.responses.insert(kind.into(), RefOr::T(problem_response(kind)));
    }
    for operation in document.paths.paths.values_mut().flat_map(operations_mut) {
        let answers = &mut operation.responses.responses;
        answers.insert("4XX".into(), RefOr::Ref(Ref::from_response_name("BadRequest")));
        answers.insert("5XX".into(), RefOr::Ref(Ref::from_response_name("Failure")));
    }
    document
}

fn info() -> Info {
    let license = License::new("Apache-2.0");
    let builder = InfoBuilder::new().title("Ashlar").version(env!("CARGO_PKG_VERSION"));
    builder.description(Some(ABOUT)).license(Some(license)).build()
}

fn problem_response(kind: &str) -> Response {
    let description = match kind {
        "BadRequest" => "Nothing was changed: the request is wrong, or the present state does not allow it",
        _ => "Not available now, or failed; repeating may help",
    };
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(PROBLEM))).build();
    ResponseBuilder::new().description(description).content(PROBLEM_TYPE, content).build()
}

fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, head, options, trace, .. } = item;
    [get, put, post, delete, patch, head, options, trace].into_iter().filter_map(Option::as_mut)
}

#[cfg(test)]
mod tests;
