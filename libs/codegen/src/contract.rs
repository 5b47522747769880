//! What a package declares, read from its descriptors and checked.

use heck::ToSnakeCase as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FileDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor, Value, prost_types::method_options::IdempotencyLevel,
};

use crate::Error;

/// A package's services.
pub(crate) struct Package {
    pub(crate) commands: Vec<Service>,
    pub(crate) queries: Vec<Service>,
}

/// A service that surfaces are generated for.
pub(crate) struct Service {
    /// `Inventory`, of `InventoryCommandService`.
    pub(crate) stem: String,
    /// `InventoryCommandService`.
    pub(crate) name: String,
    /// `inventory.v1.InventoryCommandService`.
    pub(crate) full_name: String,
    /// `inventory`, of package `inventory.v1`.
    pub(crate) peer: String,
    /// `proto::inventory::v1`.
    pub(crate) module: String,
    pub(crate) comment: String,
    pub(crate) methods: Vec<Method>,
}

/// A method of one.
pub(crate) struct Method {
    /// `ReserveStock`.
    pub(crate) name: String,
    /// `reserve_stock`.
    pub(crate) snake: String,
    /// `proto::inventory::v1::ReserveStockRequest`.
    pub(crate) request: String,
    pub(crate) response: String,
    pub(crate) comment: String,
    pub(crate) streams: bool,
    /// The method that this one undoes.
    pub(crate) compensates: Option<String>,
    /// The method that undoes this one.
    pub(crate) compensated_by: Option<String>,
    pub(crate) by_hand: bool,
    pub(crate) aggregates: Vec<AggregatePath>,
}

/// Where in a request the ids of one kind of aggregate stand.
pub(crate) struct AggregatePath {
    pub(crate) kind: String,
    pub(crate) path: Vec<Segment>,
}

/// One field on the way.
pub(crate) struct Segment {
    pub(crate) field: String,
    pub(crate) shape: Shape,
}

/// How a field is walked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The id itself.
    Id,
    /// Many ids.
    Ids,
    /// A message that may be absent.
    Message,
    /// Many messages.
    Messages,
}

impl Package {
    pub(crate) fn read(pool: &DescriptorPool, package: &str) -> Result<Self, Error> {
        let services: Vec<ServiceDescriptor> =
            pool.services().filter(|service| service.package_name() == package).collect();
        if services.is_empty() {
            return Err(Error::NoPackage(package.to_owned()));
        }
        let (mut commands, mut queries) = (Vec::new(), Vec::new());
        for service in services {
            if let Some(stem) = service.name().strip_suffix("CommandService") {
                commands.push(read_service(pool, &service, stem, read_command)?);
            } else if let Some(stem) = service.name().strip_suffix("QueryService") {
                queries.push(read_service(pool, &service, stem, read_query)?);
            } else {
                let what = format!("{}: name it …CommandService or …QueryService", service.name());
                let path = service.path().to_vec();
                return Err(declaration(&service.parent_file(), &path, what));
            }
        }
        for service in &mut commands {
            link_compensations(pool, service)?;
        }
        Ok(Self { commands, queries })
    }
}

fn read_service(
    pool: &DescriptorPool,
    service: &ServiceDescriptor,
    stem: &str,
    read: fn(&DescriptorPool, &MethodDescriptor, &mut Method) -> Result<(), Error>,
) -> Result<Service, Error> {
    let mut methods = Vec::new();
    for descriptor in service.methods() {
        let mut method = Method {
            name: descriptor.name().to_owned(),
            snake: descriptor.name().to_snake_case(),
            request: rust_path(&descriptor.input()),
            response: rust_path(&descriptor.output()),
            comment: comment(&descriptor.parent_service().parent_file(), descriptor.path()),
            streams: descriptor.is_server_streaming(),
            compensates: None,
            compensated_by: None,
            by_hand: false,
            aggregates: Vec::new(),
        };
        read(pool, &descriptor, &mut method)?;
        methods.push(method);
    }
    let package = service.package_name();
    Ok(Service {
        stem: stem.to_owned(),
        name: service.name().to_owned(),
        full_name: service.full_name().to_owned(),
        peer: package.split('.').next().unwrap_or(package).to_owned(),
        module: format!("proto::{}", package.replace('.', "::")),
        comment: comment(&service.parent_file(), service.path()),
        methods,
    })
}

fn read_command(pool: &DescriptorPool, descriptor: &MethodDescriptor, method: &mut Method) -> Result<(), Error> {
    require_level(descriptor, IdempotencyLevel::Idempotent, "IDEMPOTENT", "a command")?;
    let wrong = |what: &str| Err(method_error(descriptor, what));
    if descriptor.is_client_streaming() || descriptor.is_server_streaming() {
        return wrong("a command takes one message and answers one");
    }
    let is_string = |field: &prost_reflect::FieldDescriptor| matches!(field.kind(), Kind::String) && !field.is_list();
    if !descriptor.input().get_field_by_name("request_id").is_some_and(|field| is_string(&field)) {
        return wrong(&format!("{} has no `string request_id`: a command is keyed by it", descriptor.input().name()));
    }
    let options = pool.get_extension_by_name("libs.v1.command").and_then(|extension| {
        let options = descriptor.options();
        options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
    });
    let Some(Value::Message(options)) = options else {
        return wrong("say `option (libs.v1.command)`: which aggregates it decides over, or `by_hand: true`");
    };
    method.by_hand = flag(&options, "by_hand");
    method.compensates = Some(text(&options, "compensates")).filter(|name| !name.is_empty());
    let aggregates = options.get_field_by_name("aggregates");
    for aggregate in aggregates.as_deref().and_then(Value::as_list).unwrap_or_default() {
        let Some(aggregate) = aggregate.as_message() else { continue };
        let (kind, field) = (text(aggregate, "kind"), text(aggregate, "field"));
        if kind.is_empty() {
            return wrong(&format!("the aggregate named by {field} has no kind"));
        }
        let path = read_path(descriptor, &field)?;
        method.aggregates.push(AggregatePath { kind, path });
    }
    match (method.by_hand, method.aggregates.is_empty()) {
        (true, false) => wrong("`by_hand` and `aggregates` exclude each other"),
        (false, true) => wrong("name at least one aggregate, or say `by_hand: true`"),
        _ => Ok(()),
    }
}

fn read_query(_: &DescriptorPool, descriptor: &MethodDescriptor, _: &mut Method) -> Result<(), Error> {
    require_level(descriptor, IdempotencyLevel::NoSideEffects, "NO_SIDE_EFFECTS", "a query")?;
    if descriptor.is_client_streaming() {
        return Err(method_error(descriptor, "a query takes one message"));
    }
    Ok(())
}

fn require_level(descriptor: &MethodDescriptor, level: IdempotencyLevel, name: &str, what: &str) -> Result<(), Error> {
    let options = descriptor.method_descriptor_proto().options.as_ref();
    if options.is_some_and(|options| options.idempotency_level() == level) {
        return Ok(());
    }
    Err(method_error(descriptor, &format!("{what} says `option idempotency_level = {name}`")))
}

/// Walks `items.sku` through the request.
fn read_path(descriptor: &MethodDescriptor, field: &str) -> Result<Vec<Segment>, Error> {
    let wrong = |what: &str| method_error(descriptor, what);
    let mut message = descriptor.input();
    let mut path = Vec::new();
    let mut names = field.split('.').peekable();
    while let Some(name) = names.next() {
        let found = message
            .get_field_by_name(name)
            .ok_or_else(|| wrong(&format!("{} has no field `{name}` (in `{field}`)", message.name())))?;
        let many = found.cardinality() == Cardinality::Repeated;
        let shape = match (found.kind(), names.peek().is_none()) {
            (Kind::String, true) => {
                if many {
                    Shape::Ids
                } else {
                    Shape::Id
                }
            }
            (Kind::Message(next), false) => {
                message = next;
                if many { Shape::Messages } else { Shape::Message }
            }
            (_, true) => return Err(wrong(&format!("`{field}` is not a string: ids are"))),
            (_, false) => return Err(wrong(&format!("`{name}` in `{field}` is not a message"))),
        };
        path.push(Segment { field: name.to_snake_case(), shape });
    }
    Ok(path)
}

fn link_compensations(pool: &DescriptorPool, service: &mut Service) -> Result<(), Error> {
    let pairs: Vec<(String, String)> =
        service.methods.iter().filter_map(|m| Some((m.name.clone(), m.compensates.clone()?))).collect();
    for (undo, action) in pairs {
        let Some(method) = service.methods.iter_mut().find(|method| method.name == action) else {
            let what = format!("{undo} compensates {action}, which {} doesn't have", service.name);
            let descriptor = pool.get_service_by_name(&service.full_name);
            let method = descriptor.and_then(|service| service.methods().find(|method| method.name() == undo));
            return Err(match method {
                Some(method) => method_error(&method, &what),
                None => Error::NoPackage(what),
            });
        };
        method.compensated_by = Some(undo);
    }
    Ok(())
}

fn flag(options: &DynamicMessage, name: &str) -> bool {
    options.get_field_by_name(name).and_then(|value| value.as_bool()).unwrap_or_default()
}

fn text(options: &DynamicMessage, name: &str) -> String {
    let value = options.get_field_by_name(name);
    value.as_deref().and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn rust_path(message: &MessageDescriptor) -> String {
    format!("proto::{}::{}", message.package_name().replace('.', "::"), message.name())
}

fn method_error(method: &MethodDescriptor, what: &str) -> Error {
    let what = format!("{}: {what}", method.name());
    declaration(&method.parent_service().parent_file(), method.path(), what)
}

fn declaration(file: &FileDescriptor, path: &[i32], what: String) -> Error {
    let line = location(file, path).and_then(|location| location.span.first().copied()).unwrap_or_default() + 1;
    Error::Declaration { file: file.name().to_owned(), line, what }
}

fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let comment = location(file, path).and_then(|location| location.leading_comments.clone());
    comment.unwrap_or_default().trim().to_owned()
}

fn location(file: &FileDescriptor, path: &[i32]) -> Option<prost_reflect::prost_types::source_code_info::Location> {
    let info = file.file_descriptor_proto().source_code_info.as_ref()?;
    info.location.iter().find(|location| location.path == path).cloned()
}

/// A comment of the contract as a doc comment, indented.
pub(crate) fn doc(comment: &str, indent: &str) -> String {
    // Brackets and angles would be taken for links and HTML.
    let line = |line: &str| {
        let line = line.trim_end().replace('[', "\\[").replace('<', "\\<");
        let line = line.strip_prefix(' ').unwrap_or(&line).to_owned();
        if line.is_empty() { format!("{indent}///\n") } else { format!("{indent}/// {line}\n") }
    };
    comment.lines().map(line).collect()
}
