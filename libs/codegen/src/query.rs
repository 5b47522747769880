//! The query surface: a trait whose methods are handed the read side and nothing else, and the tonic server over it.

use std::fmt::Write as _;

use crate::{
    contract::{Method, Service},
    docs::{ALLOW, doc},
};

pub(crate) fn surface(service: &Service) -> String {
    let Service { stem, server, .. } = service;
    let mut text = String::new();

    let _ = writeln!(text, "/// How the queries of [`{stem}QuerySurface`] are answered: the service's own part.\n///");
    text.push_str(&doc(&service.comment, ""));
    let _ = writeln!(text, "{ALLOW}\npub trait {stem}Queries: Send + Sync + 'static {{");
    for method in &service.methods {
        text.push_str(&query(method));
    }
    text.push_str("}\n\n");

    // A service may have no method that needs what the surface holds.
    let _ = writeln!(
        text,
        "/// The tonic server of `{full}`. It holds the read side only: it cannot write.\n\
         #[allow(dead_code)]\n#[derive(Clone, Debug)]\n\
         pub struct {stem}QuerySurface<Q> {{\n    read: libs::cqrs::ReadSide,\n    queries: std::sync::Arc<Q>,\n}}\n\n\
         impl<Q: {stem}Queries> {stem}QuerySurface<Q> {{\n\
         \x20   /// A surface over the read side and the service's queries.\n\
         \x20   pub fn new(read: libs::cqrs::ReadSide, queries: Q) -> Self {{\n\
         \x20       Self {{ read, queries: std::sync::Arc::new(queries) }}\n    }}\n}}\n",
        full = service.full_name
    );

    let _ = writeln!(text, "#[tonic::async_trait]\nimpl<Q: {stem}Queries> {server} for {stem}QuerySurface<Q> {{");
    for method in &service.methods {
        text.push_str(&handler(service, method));
    }
    text.push_str("}\n\n");
    text
}

fn query(method: &Method) -> String {
    let Method { function, request, response, .. } = method;
    let answer = if method.streams {
        format!("Result<libs::cqrs::Changes<{response}>, libs::refusal::Refusal>")
    } else {
        format!("impl Future<Output = Result<{response}, libs::refusal::Refusal>> + Send")
    };
    format!(
        "{doc}    ///\n    /// # Errors\n    /// The refusal.\n\
         \x20   fn {function}(&self, read: &libs::cqrs::ReadSide, request: {request}) -> {answer};\n\n",
        doc = doc(&method.comment, "    "),
    )
}

fn handler(service: &Service, method: &Method) -> String {
    let Method { name, function, request, response, .. } = method;
    // By the trait's name: what holds the queries has a `clone` of its own, and nobody may call a `drop`.
    let query = format!("{}Queries::{function}", service.stem);
    if method.streams {
        return format!(
            "    type {name}Stream = libs::cqrs::Outgoing<{response}>;\n\n\
             \x20   async fn {function}(\n        &self,\n        request: tonic::Request<{request}>,\n\
             \x20   ) -> Result<tonic::Response<Self::{name}Stream>, tonic::Status> {{\n\
             \x20       self.read.stream(request, |read, request| {query}(&*self.queries, read, request)).await\n    }}\n\n"
        );
    }
    format!(
        "    async fn {function}(\n        &self,\n        request: tonic::Request<{request}>,\n\
         \x20   ) -> Result<tonic::Response<{response}>, tonic::Status> {{\n\
         \x20       self.read\n\
         \x20           .answer(request, |read, request| async move {{ {query}(&*self.queries, &read, request).await }})\n\
         \x20           .await\n    }}\n\n"
    )
}
