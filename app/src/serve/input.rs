//! From a request's body to native types, with errors that name the field.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::error::ApiError;

/// The JSON object in a request's body.
#[derive(Debug)]
pub(super) struct Input(pub(super) Value);

impl FromRequest<App> for Input {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        if !content_type.is_some_and(is_json) {
            return Err(ApiError::client(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send JSON, with the header `Content-Type: application/json`",
            ));
        }
        let seconds = app.options.client_timeout;
        let body = tokio::time::timeout(seconds, Bytes::from_request(request, app)).await.map_err(|_| {
            ApiError::client(
                StatusCode::REQUEST_TIMEOUT,
                format!("the request's body did not arrive within {} seconds", seconds.as_secs_f64()),
            )
        })?;
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::client(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "the request is larger than {} bytes, the limit of this server (--max-body-bytes)",
                    app.options.max_body_bytes
                ),
            )
            .code("request_too_large"),
            _ => {
                ApiError::bad_request(format!("the request's body cannot be read: {}", rejection.body_text()))
            }
        })?;
        // Megabytes of JSON take a while, in which others want to be served.
        app.blocking(move |_| object(&body)).await.map(Self)
    }
}

fn object(body: &[u8]) -> Result<Value, ApiError> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
    if !value.is_object() {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    }
    Ok(value)
}

fn is_json(content_type: &str) -> bool {
    let mime = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    mime == "application/json" || mime.starts_with("application/") && mime.ends_with("+json")
}

/// Reads the fields of `T`; others are left alone, for clients send more than any server knows.
pub(super) fn parse<'a, T: Deserialize<'a>>(value: &'a Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        if path != "." {
            return ApiError::param(path.clone(), format!("`{path}`: {message}"));
        }
        match message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            Some(field) => ApiError::param(field, format!("`{field}` is required")),
            None => ApiError::bad_request(message),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::{is_json, parse};

    #[derive(Debug, Deserialize)]
    struct Fields {
        #[expect(dead_code)]
        name: String,
        #[expect(dead_code)]
        list: Option<Vec<u32>>,
    }

    #[test]
    fn errors_name_the_field() {
        for (value, param, part) in [
            (json!({}), "\"name\"", "`name` is required"),
            (json!({"name": 1}), "\"name\"", "`name`: invalid type: integer `1`, expected a string"),
            (json!({"name": "", "list": [1, -1]}), "\"list[1]\"", "`list[1]`: invalid value: integer `-1`"),
        ] {
            let error = parse::<Fields>(&value).unwrap_err();
            assert!(error.message().contains(part), "{error:?}");
            assert!(format!("{error:?}").contains(&format!("param: Some({param})")), "{error:?}");
        }
        parse::<Fields>(&json!({"name": "a", "list": null, "unknown": {}})).unwrap();
    }

    #[test]
    fn json_goes_by_several_names() {
        for (content_type, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.api+json", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            assert_eq!(is_json(content_type), expected, "{content_type}");
        }
    }
}
