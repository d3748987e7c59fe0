//! The routes, and what happens to every request around them.

use std::any::Any;
use std::time::Instant;

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest as _, Sha256};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use super::App;
use super::error::ApiError;
use super::{chat, completions, embeddings, events, openapi, page, status, telemetry, tokenize};

/// What watches a server asks these every few seconds.
const PROBES: [&str; 4] = ["/health", "/ready", "/version", "/metrics"];

/// What is answered, or may be, before a request's body is read.
const UNREAD: [StatusCode; 6] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
];

/// All routes with everything around them.
pub(super) fn router(app: App) -> anyhow::Result<Router> {
    let (routes, api) = OpenApiRouter::with_openapi(openapi::Api::openapi())
        .routes(routes!(chat::create))
        .routes(routes!(completions::create))
        .routes(routes!(embeddings::create))
        .routes(routes!(status::models))
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        .routes(routes!(status::health))
        .routes(routes!(status::ready))
        .routes(routes!(status::metrics))
        .routes(routes!(status::version))
        .routes(routes!(events::events))
        // Names like `org/name` have a slash, which OpenAPI's paths cannot say.
        .route("/v1/models/{*model}", get(status::model))
        .split_for_parts();
    let cors = cors(&app.options.cors_origins)?;
    let limit = DefaultBodyLimit::max(app.options.max_body_bytes);
    Ok(routes
        .merge(SwaggerUi::new("/docs").url("/openapi.json", api))
        .merge(page::router())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), authorize))
        .layer(cors)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(limit)
        .layer(middleware::from_fn(close_unread))
        .layer(middleware::from_fn_with_state(app.clone(), measure))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_request(()).on_response(()).on_failure(()))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .with_state(app))
}

fn span(request: &Request) -> tracing::Span {
    let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok());
    let (method, path) = (request.method(), request.uri().path());
    let span = if is_quiet(path) {
        tracing::debug_span!("request", %method, path, id)
    } else {
        tracing::info_span!("request", %method, path, id)
    };
    telemetry::join_trace(&span, request.headers());
    span
}

async fn unknown(request: Request) -> ApiError {
    unknown_path(request.uri().path())
}

/// There is nothing at `path`.
pub(super) fn unknown_path(path: &str) -> ApiError {
    let message = format!("there is no {path} here; see /docs for what there is");
    ApiError::client(StatusCode::NOT_FOUND, message).code("unknown_url")
}

async fn wrong_method(request: Request) -> ApiError {
    let message =
        format!("{} does not know {}; see /docs for what it knows", request.uri().path(), request.method());
    ApiError::client(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_allowed")
}

#[expect(clippy::needless_pass_by_value, reason = "the signature tower-http asks for")]
fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref().copied());
    tracing::error!(cause = text, "a handler panicked");
    ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "the server has a defect; its log says more")
        .into_response()
}

/// A connection whose request was not read to its end ends with the answer. It says so, lest its client send the next
/// request on it and find it closed.
async fn close_unread(request: Request, next: Next) -> Response {
    let has_body = !request.body().is_end_stream();
    let mut response = next.run(request).await;
    if has_body && UNREAD.contains(&response.status()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Probes come every few seconds and the page's files by the dozen: they are logged only where more is asked for.
fn is_quiet(path: &str) -> bool {
    PROBES.contains(&path) || page::contains(path)
}

/// Counts requests and logs them.
async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = match *request.method() {
        Method::GET | Method::POST | Method::OPTIONS | Method::HEAD => request.method().to_string(),
        // Clients can make up as many as they like.
        _ => "other".to_owned(),
    };
    let quiet = is_quiet(request.uri().path());
    let path = match request.extensions().get::<MatchedPath>() {
        Some(_) if page::contains(request.uri().path()) => page::LABEL.to_owned(),
        Some(route) => route.as_str().to_owned(),
        None => "unknown".to_owned(),
    };
    let response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), start.elapsed());
    app.metrics.http(&method, &path, status, took);
    if quiet {
        tracing::debug!(status, seconds = took.as_secs_f64(), "answered");
    } else {
        tracing::info!(status, seconds = took.as_secs_f64(), "answered");
    }
    response
}

/// Probes have no key, and a browser sends none; neither learns anything that is secret.
fn is_open(path: &str) -> bool {
    PROBES.contains(&path)
        || path == "/openapi.json"
        || path == "/docs"
        || path.starts_with("/docs/")
        || page::contains(path)
}

async fn authorize(State(app): State<App>, request: Request, next: Next) -> Result<Response, ApiError> {
    if app.keys.is_empty() || is_open(request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let header = request.headers().get(header::AUTHORIZATION);
    let Some(key) = header.and_then(|value| bearer(value.as_bytes())) else {
        app.metrics.rejected("unauthorized");
        return Err(ApiError::unauthorized(
            "this server asks for a key: send it as `Authorization: Bearer KEY`",
        ));
    };
    // Digests are compared: how long that takes says nothing about the keys.
    if !app.keys.contains(&digest(key)) {
        app.metrics.rejected("unauthorized");
        return Err(ApiError::unauthorized("the key is not one of this server's"));
    }
    Ok(next.run(request).await)
}

/// The key after the scheme, whose letters may be small or capital (RFC 9110, section 11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = header.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// What is kept of a key.
pub(super) fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn cors(origins: &[String]) -> anyhow::Result<CorsLayer> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's client for browsers sends a dozen of its own (`x-stainless-os`).
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("x-request-id"), header::RETRY_AFTER]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(tower_http::cors::Any));
    }
    let parse = |origin: &String| {
        let good = origin.split_once("://").is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
        let value = HeaderValue::from_str(origin).ok().filter(|_| good);
        value.ok_or_else(|| {
            anyhow::anyhow!("--cors-origin {origin} is not an origin like https://example.org, or *")
        })
    };
    let origins = origins.iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(layer.allow_origin(AllowOrigin::list(origins)))
}
