//! The HTTP API as a contract: its document describes what is answered, lists have pages, creates may be repeated, and
//! what changes can be watched, at any node.

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::cluster::{Cluster, VOLUME};
use support::manual::ManualCluster;
use support::watch::Watch;
use support::{api, report, tools, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);
const CALL: Duration = Duration::from_secs(10);

fn cluster(test: &str) -> Cluster {
    Cluster::start(test, &["--size", "64MiB", "--device-size", "512MiB"])
}

fn create(address: &str, key: &str, body: &Value) -> (u16, Value) {
    let headers = [("idempotency-key", key)];
    let answer =
        api::request_with("POST", address, "/v1/volumes", &headers, &body.to_string(), CALL).expect("an answer");
    (answer.status, answer.json().expect("JSON"))
}

fn small(name: &str) -> Value {
    json!({ "name": name, "size": "64MiB", "lanes": 1 })
}

/// The schema itself, whatever refers to it.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            let schema = document.pointer(reference.trim_start_matches('#'));
            resolved(document, schema.unwrap_or_else(|| panic!("{reference} is missing")))
        }
        None => schema,
    }
}

/// Every field of the value is described, and every field that must be there is.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = resolved(document, schema);
    if let Some(parts) = schema["oneOf"].as_array() {
        let fits = |part: &&Value| (part["type"] == "null") == value.is_null();
        let part = parts.iter().find(fits).unwrap_or_else(|| panic!("{place}: nothing fits {value}"));
        return check(document, part, value, place);
    }
    match value {
        Value::Object(fields) => {
            let parts = schema["allOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
            let parts: Vec<&Value> = parts.iter().map(|part| resolved(document, part)).collect();
            if parts.iter().all(|part| part["properties"].is_null()) {
                return; // honest: a free form
            }
            for (name, value) in fields {
                let described = parts.iter().map(|part| &part["properties"][name]).find(|schema| !schema.is_null());
                let described = described.unwrap_or_else(|| panic!("{place}: the document has no field {name}"));
                check(document, described, value, &format!("{place}.{name}"));
            }
            for name in parts.iter().filter_map(|part| part["required"].as_array()).flatten() {
                assert!(fields.contains_key(name.as_str().expect("a name")), "{place}: {name} is required and missing");
            }
        }
        Value::Array(items) => items.iter().for_each(|item| check(document, &schema["items"], item, place)),
        simple => {
            let kind = match simple {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::String(_) => "string",
                _ if simple.is_u64() || simple.is_i64() => "integer",
                _ => "number",
            };
            let kinds = &schema["type"];
            let fits = kinds == kind || kinds.as_array().is_some_and(|kinds| kinds.iter().any(|one| one == kind));
            assert!(fits || (kind == "integer" && kinds == "number"), "{place}: {simple} is no {kinds}");
        }
    }
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn the_document_describes_what_is_answered() {
    let cluster = cluster("document");
    let document = cluster.get("n3", "/v1/openapi.json").expect("the document");
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document, cluster.get("n1", "/v1/openapi.json").expect("the document"));
    let devices = cluster.get("n1", "/v1/devices").expect("devices");
    let device = devices["items"][0]["id"].as_str().expect("an id").to_owned();
    let _guest = cluster.open_at("n2");
    let mut checked = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        let real = match path.as_str() {
            // Itself, nothing to name, and bytes.
            "/v1/openapi.json" | "/v1/operations/{id}" | "/v1/cluster/backup" => continue,
            "/v1/nodes/{name}" => "/v1/nodes/n2".to_owned(),
            "/v1/volumes/{name}" => format!("/v1/volumes/{VOLUME}"),
            "/v1/volumes/{name}/placement" => format!("/v1/volumes/{VOLUME}/placement"),
            "/v1/devices/{id}" => format!("/v1/devices/{device}"),
            other => other.to_owned(),
        };
        let schema = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        if item["get"].is_null() {
            continue;
        }
        assert!(!schema.is_null(), "{path} has no schema");
        let answer = cluster.get("n1", &real).unwrap_or_else(|error| panic!("{path}: {error}"));
        check(&document, schema, &answer, path);
        checked += 1;
    }
    assert!(checked >= 8, "{checked} answers");
    let missing = api::call(&cluster.node("n1").api, "/v1/volumes/none", CALL).expect("an answer");
    check(&document, &json!({ "$ref": "#/components/schemas/Problem" }), &missing.json().expect("JSON"), "problem");
    for (method, path, body, status) in [
        ("POST", "/v1/volumes", "{\"name\": 1}", 400),
        ("POST", "/v1/volumes", "{", 400),
        ("PATCH", "/v1/volumes", "", 405),
        ("GET", "/v1/volumes?limit=many", "", 400),
        ("GET", "/v1/volumes?after=v", "", 400),
    ] {
        let answer = api::request(method, &cluster.node("n2").api, path, body, CALL).expect("an answer");
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        check(&document, &json!({ "$ref": "#/components/schemas/Problem" }), &answer.json().expect("JSON"), path);
    }
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn lists_have_pages_that_others_may_disturb() {
    let cluster = cluster("pages");
    for name in ["a", "b", "c", "d", "e", "f"] {
        cluster.cli("n1", &["volume", "create", name, "--size", "64MiB", "--lanes", "1"]).expect_code(0);
    }
    let page = |node: &str, query: &str| {
        let page = cluster.get(node, &format!("/v1/volumes?limit=3{query}")).expect("a page");
        let names = page["items"].as_array().expect("items").iter().map(|volume| volume["name"].clone());
        (Value::Array(names.collect()), page["next"].as_str().map(str::to_owned))
    };
    let (first, next) = page("n1", "");
    assert_eq!(first, json!(["a", "b", "c"]));
    // The one that ended the page goes, and one that belongs before it comes.
    cluster.cli("n2", &["volume", "delete", "c", "--yes"]).expect_code(0);
    cluster.cli("n2", &["volume", "create", "aa", "--size", "64MiB", "--lanes", "1"]).expect_code(0);
    let (second, next) = page("n2", &format!("&cursor={}", next.expect("a next page")));
    assert_eq!(second, json!(["d", "e", "f"]));
    let (third, end) = page("n3", &format!("&cursor={}", next.expect("a next page")));
    assert_eq!((third, end), (json!([VOLUME]), None));
    for bad in ["limit=0", "limit=5001", "cursor=x", "cursor=", "cursor=6e6f6465732f31"] {
        let answer = api::call(&cluster.node("n1").api, &format!("/v1/volumes?{bad}"), CALL).expect("an answer");
        assert_eq!((answer.status, &answer.json().expect("JSON")["code"]), (400, &json!("invalid")), "{bad}");
    }
    for list in ["nodes", "devices", "settings"] {
        let whole = cluster.get("n1", &format!("/v1/{list}")).expect("a list");
        let (mut items, mut query) = (Vec::new(), String::new());
        loop {
            let page = cluster.get("n2", &format!("/v1/{list}?limit=1{query}")).expect("a page");
            items.extend(page["items"].as_array().expect("items").iter().cloned());
            let Some(next) = page["next"].as_str() else { break };
            query = format!("&cursor={next}");
        }
        let key = |items: &[Value]| items.iter().map(|item| item["id"].clone()).collect::<Vec<_>>();
        assert_eq!(key(&items), key(whole["items"].as_array().expect("items")), "{list}");
    }
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_create_with_a_key_may_be_repeated_at_another_node() {
    let cluster = cluster("keys");
    let at = |node: &str| cluster.node(node).api;
    let (status, first) = create(&at("n1"), "key-1", &small("v"));
    assert_eq!(status, 200, "{first}");
    let (status, again) = create(&at("n3"), "key-1", &small("v"));
    assert_eq!((status, &again["id"]), (200, &first["id"]));
    let mut other = small("v");
    other["replicas"] = 2.into();
    for (body, word) in [(other, "replicas"), (small("w"), "another request")] {
        let (status, problem) = create(&at("n2"), "key-1", &body);
        assert_eq!((status, &problem["code"]), (409, &json!("token_reused")), "{problem}");
        assert!(problem["detail"].as_str().expect("text").contains(word), "{problem}");
    }
    // Without the key the name is taken, and with a new one, too.
    assert_eq!(create(&at("n2"), "key-2", &small("v")).1["code"], "name_taken");
    assert_eq!(create(&at("n2"), &"k".repeat(129), &small("x")).0, 400);
    cluster.cli("n1", &["volume", "delete", "v", "--yes"]).expect_code(0);
    let (status, problem) = create(&at("n1"), "key-1", &small("v"));
    assert_eq!((status, &problem["code"]), (409, &json!("token_reused")), "{problem}");
    let words = ["volume", "create", "v", "--size", "64MiB", "--lanes", "1", "--idempotency-key", "key-3"];
    for node in ["n1", "n2"] {
        cluster.cli(node, &words).expect_code(0);
    }
}

fn is_item(line: &Value, key: &str) -> bool {
    line["event"] == "item" && line["key"] == key
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_volume_is_watched_from_its_creation_to_its_end() {
    let cluster = cluster("watch");
    let mut list = Watch::start(&cluster.node("n2").api, "/v1/volumes");
    list.until("everything is told", PATIENCE, |line| line["event"] == "synced");
    assert_eq!(list.seen[0]["event"], "reset");
    assert!(list.seen.iter().any(|line| is_item(line, VOLUME)), "{:?}", list.seen);

    let began = Instant::now();
    assert_eq!(create(&cluster.node("n1").api, "w", &small("w")).0, 200);
    let created = list.until("it is there", PATIENCE, |line| is_item(line, "w"));
    report(&format!("a volume created at another node was told {} ms later", began.elapsed().as_millis()));
    assert_eq!(created["item"]["health"], "healthy", "{created}");
    let mut one = Watch::start(&cluster.node("n3").api, "/v1/volumes/w");
    let shown = one.until("it is shown", PATIENCE, |line| is_item(line, "w"));
    assert!(shown["item"]["lanes"].as_array().is_some_and(|lanes| lanes.len() == 1), "{shown}");
    cluster.cli("n1", &["volume", "attach", "w"]).expect_code(0);
    for watch in [&mut list, &mut one] {
        watch.until("it is attached", PATIENCE, |line| is_item(line, "w") && line["item"]["attached"]["node"] == "n1");
    }
    // What only its writer knows is told, too.
    let mut client = support::cluster::open(&cluster.uri_of("w", "n1"));
    client.write(0, &[1; 4096]).expect("a write");
    one.until("a guest writes", PATIENCE, |line| line["item"]["counters"]["writes"].as_u64() > Some(0));
    client.disconnect().expect("an orderly goodbye");
    cluster.cli("n2", &["volume", "delete", "w", "--yes", "--force"]).expect_code(0);
    for watch in [&mut list, &mut one] {
        watch.until("it is gone", PATIENCE, |line| line["event"] == "gone" && line["key"] == "w");
    }
    let refused = api::call(&cluster.node("n1").api, "/v1/volumes?watch=true&limit=2", CALL).expect("an answer");
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(api::call(&cluster.node("n1").api, "/v1/volumes/w?watch=true", CALL).expect("an answer").status, 404);
    // A node has so many watchers at most; one that goes makes room for another.
    let address = cluster.node("n1").api;
    let crowd: Vec<Watch> = (0..64).map(|_| Watch::start(&address, "/v1/volumes")).collect();
    let watch = || api::call(&address, "/v1/volumes?watch=true", Duration::from_secs(1));
    assert_eq!(watch().map(|answer| answer.status), Ok(503));
    drop(crowd);
    wait_for("there is room again", PATIENCE, || watch().map_or(Ok(()), |refused| Err(refused.body)));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_node_that_goes_is_watched_and_the_command_line_tells_it() {
    let cluster = cluster("watch-nodes");
    let mut command = Command::new(tools::ashlar_binary());
    command.args(["node", "list", "--watch", "-o", "json"]).env("ASHLAR_ENDPOINT", &cluster.node("n1").api);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the command line");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, lines) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        let lines = stdout.lines().map_while(Result::ok);
        lines.map_while(|line| sender.send(line).ok()).for_each(drop);
    });
    let until = |what: &str, is_wanted: &dyn Fn(&Value) -> bool| {
        let ends = Instant::now() + PATIENCE;
        loop {
            let line = lines.recv_timeout(ends.saturating_duration_since(Instant::now())).expect(what);
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{what}: {error}: {line}"));
            if is_wanted(&line) {
                return;
            }
        }
    };
    until("n3 is up", &|line| is_item(line, "n3") && line["item"]["state"] == "up");
    cluster.kill("n3");
    until("n3 is down", &|line| is_item(line, "n3") && line["item"]["state"] == "down");
    cluster.start_again(Some("n3"));
    until("n3 is up again", &|line| is_item(line, "n3") && line["item"]["state"] == "up");
    drop(child.kill());
    drop(child.wait());
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_node_outside_the_metadata_service_passes_a_watch_on() {
    let roles = [("n1", "\"store\", \"target\", \"meta\""), ("n2", "\"target\"")];
    let cluster = ManualCluster::start("watch-forward", &roles);
    cluster.found_and_join();
    cluster.add_device("n1", 512 << 20, &[]);
    let at = |node: &str| cluster.node(node).api.clone();
    let mut watch = Watch::start(&at("n2"), "/v1/volumes");
    watch.until("everything is told", PATIENCE, |line| line["event"] == "synced");
    let mut body = small("v");
    body["replicas"] = 1.into();
    assert_eq!(create(&at("n2"), "key", &body).0, 200);
    watch.until("it is there", PATIENCE, |line| is_item(line, "v"));
    assert_eq!(create(&at("n2"), "key", &body).0, 200, "the key is passed on");
    watch.until("the stream lives", PATIENCE, |line| line["event"] == "alive");
    cluster.cli("n1", &["volume", "delete", "v", "--yes"]).expect_code(0);
    watch.until("it is gone", PATIENCE, |line| line["event"] == "gone" && line["key"] == "v");
    let refused = api::call(&at("n2"), "/v1/volumes/v?watch=true", CALL).expect("an answer");
    assert_eq!(refused.status, 404, "{}", refused.body);
}
