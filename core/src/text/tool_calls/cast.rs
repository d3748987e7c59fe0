//! From the text of an XML parameter to a JSON value of the type its schema asks for.

use serde_json::Value;

/// The JSON value that the text of the parameter `name` stands for, under the schema of all parameters. Text that is
/// of no other type the schema allows is a string.
pub(super) fn cast(text: &str, name: &str, schema: Option<&Value>) -> Value {
    let mut allowed = Allowed::default();
    if let Some(schema) = schema {
        let property = schema.get("properties").and_then(|properties| properties.get(name));
        allowed.read(property.unwrap_or(&Value::Null), schema, 0);
    }
    let string = || Value::from(text);
    if allowed.values.contains(&string()) {
        return string();
    }
    let spelt = match text {
        "True" | "TRUE" => "true",
        "False" | "FALSE" => "false",
        "None" | "NULL" => "null",
        text => text,
    };
    // Text in quotes is a string with quotes.
    let fits = |value: &Value| {
        !value.is_string()
            && (allowed.types.is_empty() || allowed.types.iter().any(|name| is_type(value, name)))
    };
    serde_json::from_str(spelt).ok().filter(fits).unwrap_or_else(string)
}

/// What a schema says about the type of a value.
#[derive(Debug, Default)]
struct Allowed {
    /// Names of types; none of them allows any.
    types: Vec<String>,
    /// The values of `enum` and `const`.
    values: Vec<Value>,
}

/// Schemas within schemas: references may form a ring.
const MAX_DEPTH: usize = 16;

impl Allowed {
    fn read(&mut self, schema: &Value, root: &Value, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        let reference = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        if let Some(target) = reference.and_then(|pointer| root.pointer(pointer)) {
            self.read(target, root, depth + 1);
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for branch in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.read(branch, root, depth + 1);
            }
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.types.push(name.clone()),
            Some(Value::Array(names)) => {
                self.types.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            _ => {}
        }
        self.values.extend(schema.get("const").cloned());
        self.values.extend(schema.get("enum").and_then(Value::as_array).into_iter().flatten().cloned());
    }
}

fn is_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => {
            let whole = number.as_f64().is_some_and(|number| number.fract() == 0.0);
            name == "number" || (name == "integer" && whole)
        }
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}
