//! JSON values as YAML: block style, strings quoted as in JSON where they need it.

use serde_json::Value;

/// The value as a YAML document.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(_) | Value::Array(_) if !is_empty(value) => block(value, 0, &mut text),
        _ => {
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                text.push_str(&format!("{indent}{}:", string(key)));
                child(inner, depth, text);
            }
        }
        Value::Array(list) => {
            for inner in list {
                text.push_str(&format!("{indent}-"));
                child(inner, depth, text);
            }
        }
        _ => {}
    }
}

fn child(value: &Value, depth: usize, text: &mut String) {
    if matches!(value, Value::Object(_) | Value::Array(_)) && !is_empty(value) {
        text.push('\n');
        block(value, depth + 1, text);
    } else {
        text.push_str(&format!(" {}\n", scalar(value)));
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        other => other.to_string(),
    }
}

/// A plain word stays plain; anything that YAML could read as something else is quoted.
fn string(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_read_as_yaml() {
        let value = json!({ "a": [1, { "b": "yes" }], "c": {}, "d": "plain", "e": "two words", "f": null });
        let yaml = "a:\n  - 1\n  -\n    b: \"yes\"\nc: {}\nd: plain\ne: \"two words\"\nf: null\n";
        assert_eq!(to_yaml(&value), yaml);
        assert_eq!(to_yaml(&json!("x")), "x\n");
    }
}
