//! The router and the document say the same, both ways, and what the document refers to is there.

use super::super::{Api, local_routes, member_routes, rejections, router, unknown_path};
use super::document;
use crate::api::page::{LIMIT_DEFAULT, LIMIT_MAX};
use crate::client::{Answer, Call, HttpClient};
use crate::config::{Overrides, parse};
use ashlar_model::SessionId;
use axum::Router;
use axum::middleware::from_fn;
use hyper::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

fn described() -> Value {
    json!(document())
}

fn paths(document: &Value) -> impl Iterator<Item = (&String, &Value)> {
    document["paths"].as_object().expect("paths").iter()
}

fn operations(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    paths(document).flat_map(|(path, item)| {
        let methods = METHODS.into_iter().filter(|method| !item[method].is_null());
        methods.map(move |method| (format!("{method} {path}"), &item[method]))
    })
}

/// The API of a daemon that belongs to no cluster: every route answers, none does anything.
fn api() -> Arc<Api> {
    let (bootstrap, requests) = mpsc::channel(1);
    drop(requests);
    let config = parse("name = \"n1\"\ndata_dir = \"/nowhere\"\n", Overrides::default()).expect("a configuration");
    Arc::new(Api::new(Arc::new(config), HttpClient::new(), SessionId::from_u128(1), bootstrap))
}

/// The routes alone: nothing is passed on, or refused for want of a cluster, before the method is looked at.
fn bare_router() -> Router {
    let routes = member_routes().merge(local_routes()).layer(from_fn(rejections::as_problems));
    routes.split_for_parts().0.fallback(unknown_path).with_state(api())
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn call(client: &HttpClient, address: &str, method: &str, path: &str) -> Answer {
    let path = path.replace(['{', '}'], "");
    let mut call = Call::post_json(address, &path, &json!({}), Duration::from_secs(10));
    call.method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
    client.call(call).await.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

#[tokio::test]
async fn the_router_has_what_the_document_says_and_no_other_method() {
    let (whole, bare) = (serve(router(api())).await, serve(bare_router()).await);
    let (client, document) = (HttpClient::new(), described());
    for (path, item) in paths(&document) {
        for method in METHODS {
            let is_described = !item[method].is_null();
            let answer = call(&client, if is_described { &whole } else { &bare }, method, path).await;
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let is_known = answer.status != 405 && body["code"] != "path_not_found";
            assert_eq!(is_known, is_described, "{method} {path}: {} {body}", answer.status);
            if !answer.status.is_success() {
                assert_eq!(answer.content_type, "application/problem+json", "{method} {path}: {body}");
                assert!(body["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{method} {path}: {body}");
            }
        }
    }
    let openapi = call(&client, &whole, "get", "/v1/openapi.json").await;
    assert_eq!(serde_json::from_slice::<Value>(&openapi.body).expect("JSON"), document);
    let unknown = call(&client, &whole, "get", "/v1/unknown").await;
    assert_eq!((unknown.status.as_u16(), unknown.content_type.as_str()), (404, "application/problem+json"));
}

/// `axum` lists no routes: that none of `/v1` comes without its description is seen in the text.
#[test]
fn routes_of_v1_are_registered_with_their_description_only() {
    let text = include_str!("../mod.rs");
    let plain = text.lines().filter(|line| line.contains(".route(") || line.contains(".nest(")).collect::<Vec<_>>();
    assert!(plain.len() >= 4, "the text has changed, and this test looks for nothing: {plain:?}");
    assert!(!plain.iter().any(|line| line.contains("/v1")), "use `.routes(routes!(..))`: {plain:?}");
    assert!(text.contains("member_routes()") && text.contains("local_routes()"));
}

#[test]
fn every_operation_is_described() {
    let document = described();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (name, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{name} has no id"));
        assert!(ids.insert(id.to_owned()), "{name}: the id {id} is taken");
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no summary");
        assert!(operation["tags"].as_array().is_some_and(|tags| tags.len() == 1), "{name} has no tag");
        let answers = operation["responses"].as_object().expect("answers");
        assert!(["200", "4XX", "5XX"].iter().all(|status| answers.contains_key(*status)), "{name}: {answers:?}");
        assert!(!name.contains("internal"), "{name}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let says = parameter["description"].as_str().is_some_and(|text| !text.is_empty());
            assert!(says && !parameter["schema"].is_null(), "{name}: {parameter}");
        }
        let named = name.matches('{').count();
        let in_path = operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "path");
        assert_eq!(in_path.count(), named, "{name}: parameters of the path");
    }
    assert!(ids.len() >= 20, "{ids:?}");
}

#[test]
fn the_limits_of_pages_are_those_that_are_kept() {
    let document = described();
    let parameters = document["paths"]["/v1/volumes"]["get"]["parameters"].as_array().expect("parameters");
    let limit = parameters.iter().find(|parameter| parameter["name"] == "limit").expect("a limit");
    let schema = &limit["schema"];
    assert_eq!((&schema["maximum"], &schema["default"]), (&json!(LIMIT_MAX), &json!(LIMIT_DEFAULT)));
}

#[test]
fn what_the_document_refers_to_is_there() {
    let document = described();
    let mut seen = 0;
    visit(&document, &mut |reference| {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is elsewhere"));
        assert!(document.pointer(pointer).is_some(), "{reference} is missing");
        seen += 1;
    });
    assert!(seen > 50, "{seen} references");
    let problem = &document["components"]["schemas"]["Problem"]["required"];
    assert_eq!(problem, &json!(["status", "code", "title", "detail", "hint"]));
}

fn visit(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                found(reference);
            }
            fields.values().for_each(|value| visit(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| visit(value, found)),
        _ => {}
    }
}
