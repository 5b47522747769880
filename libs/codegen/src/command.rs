//! The command surface: a trait of decisions, and the tonic server that keys, loads and submits each.

use std::fmt::Write as _;

use crate::{
    contract::{AggregatePath, Method, Service, Shape},
    docs::{ALLOW, doc},
};

pub(crate) fn surface(service: &Service) -> String {
    let Service { stem, server, .. } = service;
    let mut text = String::new();

    let _ = writeln!(text, "/// What the commands of [`{stem}CommandSurface`] come to: the service's own part.\n///");
    text.push_str(&doc(&service.comment, ""));
    let _ = writeln!(text, "{ALLOW}\npub trait {stem}Decider: Send + Sync + 'static {{");
    for method in &service.methods {
        text.push_str(&if method.by_hand { by_hand(method) } else { decision(method) });
    }
    text.push_str("}\n\n");

    // A service may have no method that needs what the surface holds.
    let _ = writeln!(
        text,
        "/// The tonic server of `{full}`: it keys each command, has it decided and committed, and answers.\n\
         #[allow(dead_code)]\n#[derive(Clone, Debug)]\n\
         pub struct {stem}CommandSurface<D> {{\n    side: libs::cqrs::CommandSide,\n    decider: std::sync::Arc<D>,\n}}\n\n\
         impl<D: {stem}Decider> {stem}CommandSurface<D> {{\n\
         \x20   /// A surface over the command side and the service's decisions.\n\
         \x20   pub fn new(side: libs::cqrs::CommandSide, decider: D) -> Self {{\n\
         \x20       Self {{ side, decider: std::sync::Arc::new(decider) }}\n    }}\n}}\n",
        full = service.full_name
    );

    // A field that is named may be deprecated, and how its path is walked is a matter of the contract, not of style.
    let _ = writeln!(
        text,
        "#[allow(clippy::all, deprecated)]\n#[tonic::async_trait]\nimpl<D: {stem}Decider> {server} for {stem}CommandSurface<D> {{"
    );
    for method in &service.methods {
        text.push_str(&handler(service, method));
    }
    text.push_str("}\n\n");
    text
}

fn decision(method: &Method) -> String {
    let Method { snake, function, request, response, name, .. } = method;
    format!(
        "    /// Notes what is wrong with the shape of a {name}, before anything is loaded.\n\
         \x20   fn check_{snake}(&self, request: &{request}, violations: &mut libs::refusal::Violations);\n\n\
         \x20   /// Fills what a {name} may leave to the service, such as a new id. It is no part of what makes two requests the same.\n\
         \x20   fn prepare_{snake}(&self, request: &mut {request}) {{\n        let _ = request;\n    }}\n\n\
         \x20   /// Names what a {name} must see beside what its contract names, such as the locks of a saga that it starts.\n\
         \x20   ///\n    /// # Errors\n    /// When the request can't be decided at all.\n\
         \x20   fn beside_{snake}(\n        &self,\n        request: &{request},\n\
         \x20   ) -> Result<Vec<libs::journal::AggregateId>, libs::refusal::Refusal> {{\n\
         \x20       let _ = request;\n        Ok(Vec::new())\n    }}\n\n\
         {doc}\
         \x20   ///\n    /// # Errors\n    /// The refusal, which is kept and answered again to the same request.\n\
         \x20   fn {function}(\n        &self,\n        state: &libs::cqrs::State<'_>,\n        request: &{request},\n\
         \x20   ) -> Result<libs::cqrs::Decision<{response}>, libs::refusal::Refusal>;\n\n",
        doc = doc(&method.comment, "    "),
    )
}

fn by_hand(method: &Method) -> String {
    let Method { function, request, response, .. } = method;
    format!(
        "{doc}\
         \x20   ///\n    /// # Errors\n    /// The refusal.\n\
         \x20   fn {function}(\n        &self,\n        request: tonic::Request<{request}>,\n\
         \x20   ) -> impl Future<Output = Result<tonic::Response<{response}>, tonic::Status>> + Send;\n\n",
        doc = doc(&method.comment, "    "),
    )
}

fn handler(service: &Service, method: &Method) -> String {
    let Method { snake, function, request, response, .. } = method;
    // By the trait's name: what holds the decider has a `clone` of its own, and nobody may call a `drop`.
    let decide = format!("{}Decider::{function}", service.stem);
    let head = format!(
        "    async fn {function}(\n        &self,\n        request: tonic::Request<{request}>,\n\
         \x20   ) -> Result<tonic::Response<{response}>, tonic::Status> {{\n"
    );
    if method.by_hand {
        return format!("{head}        {decide}(&*self.decider, request).await\n    }}\n\n");
    }
    let mut text = head;
    let _ = write!(
        text,
        "        const METHOD: libs::cqrs::Method = libs::cqrs::Method {{\n\
         \x20           name: \"{full}/{name}\",\n            compensates: {compensates},\n        }};\n\
         \x20       let (metadata, _, mut request) = request.into_parts();\n\
         \x20       let mut violations = libs::refusal::Violations::default();\n\
         \x20       self.decider.check_{snake}(&request, &mut violations);\n\
         \x20       let mut accepted = self.side.accept(&METHOD, &metadata, &request, &request.request_id, violations).await?;\n\
         \x20       let mut aggregates = Vec::new();\n\
         \x20       if !accepted.is_refused() {{\n\
         \x20           self.decider.prepare_{snake}(&mut request);\n",
        full = service.full_name,
        name = method.name,
        compensates = method.compensates.is_some(),
    );
    for aggregate in &method.aggregates {
        text.push_str(&name_aggregates(aggregate));
    }
    let _ = write!(
        text,
        "            match self.decider.beside_{snake}(&request) {{\n\
         \x20               Ok(beside) => aggregates.extend(beside),\n\
         \x20               Err(refusal) => accepted.refuse(refusal),\n\
         \x20           }}\n\
         \x20       }} else {{\n\
         \x20           // Nobody looks at it again, and what is wrong with it may be how much it is.\n\
         \x20           request = {request}::default();\n\
         \x20       }}\n\
         \x20       let decider = std::sync::Arc::clone(&self.decider);\n\
         \x20       self.side.submit(accepted, aggregates, move |state| {decide}(&*decider, state, &request)).await\n    }}\n\n"
    );
    text
}

/// Loops and pushes for one path: `for item in &request.items { aggregates.push(…item.sku…) }`.
fn name_aggregates(aggregate: &AggregatePath) -> String {
    let (mut open, mut close) = (String::new(), String::new());
    let mut at = "request".to_owned();
    let mut indent = " ".repeat(12);
    for (depth, segment) in aggregate.path.iter().enumerate() {
        let field = format!("{at}.{}", segment.field);
        let inner = format!("part{depth}");
        let block = match segment.shape {
            Shape::Id => None,
            Shape::Message => Some(format!("if let Some({inner}) = &{field}")),
            Shape::Ids | Shape::Messages => Some(format!("for {inner} in &{field}")),
        };
        match block {
            None => at = field,
            Some(block) => {
                let _ = writeln!(open, "{indent}{block} {{");
                close.insert_str(0, &format!("{indent}}}\n"));
                indent.push_str("    ");
                at = inner;
            }
        }
    }
    format!(
        "{open}{indent}aggregates.push(libs::journal::AggregateId::new(\"{}\", {at}.as_str()));\n{close}",
        aggregate.kind
    )
}
