//! Errors in OpenAI's shape.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tread_core::Error;
use utoipa::ToSchema;

use super::engine::Failure;

/// An answer that says what is wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ErrorResponse)]
pub(super) struct ApiError {
    error: ErrorBody,
    #[serde(skip)]
    status: StatusCode,
    #[serde(skip)]
    retry_after: Option<u32>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct ErrorBody {
    /// What is wrong, and what to do about it.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field of the request that is meant.
    param: Option<String>,
    /// For programs.
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let error = ErrorBody { message: message.into(), kind, param: None, code: None };
        Self { error, status, retry_after: None }
    }

    /// 400: the request as a whole cannot be answered.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::client(StatusCode::BAD_REQUEST, message)
    }

    /// 400: this field is wrong.
    pub(super) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::bad_request(message);
        error.error.param = Some(param.into());
        error
    }

    /// Another error that is the client's.
    pub(super) fn client(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// 401.
    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key")
    }

    /// 429 with a time to wait.
    pub(super) fn too_many(message: impl Into<String>) -> Self {
        let mut error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).code("queue_full");
        error.retry_after = Some(1);
        error
    }

    /// 503 with a time to wait.
    fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::server(StatusCode::SERVICE_UNAVAILABLE, message).code("unavailable");
        error.retry_after = Some(5);
        error
    }

    /// Not the client's fault.
    pub(super) fn server(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "server_error", message)
    }

    /// The same with a code for programs.
    pub(super) fn code(mut self, code: &'static str) -> Self {
        self.error.code = Some(code);
        self
    }

    /// Says which field is meant, unless it is known already.
    pub(super) fn about(mut self, param: &str) -> Self {
        self.error.param.get_or_insert_with(|| param.to_owned());
        self
    }

    /// The text.
    #[cfg(test)]
    pub(super) fn message(&self) -> &str {
        &self.error.message
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(&self)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            // Without the variant's prefix: what the client sent is at fault, not the model's configuration.
            Error::Config(message) | Error::Text(message) | Error::Capacity(message) => {
                Self::bad_request(message)
            }
            Error::Unsupported(_) => Self::bad_request(error.to_string()),
            Error::Unavailable(message) => Self::unavailable(message),
            other => Self::server(StatusCode::INTERNAL_SERVER_ERROR, other.to_string()),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Request(error) => error.into(),
            Failure::QueueFull { .. } => Self::too_many(message),
            Failure::TooMany { .. } => Self::bad_request(message).code("too_many_sequences"),
            Failure::Timeout(_) => Self::server(StatusCode::GATEWAY_TIMEOUT, message).code("timeout"),
            Failure::Unavailable(_) => Self::unavailable(message),
            Failure::Stopping => Self::server(StatusCode::SERVICE_UNAVAILABLE, message).code("shutting_down"),
            Failure::Lost(_) => Self::server(StatusCode::SERVICE_UNAVAILABLE, message).code("device_lost"),
        }
    }
}
