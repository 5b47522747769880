//! What a package declares, read from its descriptors and checked.

use std::collections::HashMap;

use heck::ToSnakeCase as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, ServiceDescriptor, Value, prost_types::method_options::IdempotencyLevel,
};

use crate::{Error, names};

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
    /// `inventory`, of package `inventory.v1` or `acme.inventory.v1`.
    pub(crate) peer: String,
    /// `proto::inventory::v1::inventory_command_service_server::InventoryCommandService`.
    pub(crate) server: String,
    pub(crate) comment: String,
    pub(crate) methods: Vec<Method>,
}

/// A method of one.
pub(crate) struct Method {
    /// Where it is declared.
    pub(crate) descriptor: MethodDescriptor,
    /// `ReserveStock`.
    pub(crate) name: String,
    /// `reserve_stock`, to stand in other names.
    pub(crate) snake: String,
    /// `reserve_stock`, or `r#move`: its function.
    pub(crate) function: String,
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
            let known = pool.files().any(|file| file.package_name() == package);
            let none = if known { Error::NoService } else { Error::NoPackage };
            return Err(none(package.to_owned()));
        }
        let (mut commands, mut queries) = (Vec::new(), Vec::new());
        for service in services {
            if let Some(stem) = service.name().strip_suffix("CommandService") {
                let mut read = read_service(pool, &service, stem, read_command)?;
                link_compensations(&service, &mut read)?;
                check_names(&read)?;
                commands.push(read);
            } else if let Some(stem) = service.name().strip_suffix("QueryService") {
                queries.push(read_service(pool, &service, stem, read_query)?);
            } else {
                let what = format!("{}: name it …CommandService or …QueryService", service.name());
                let path = service.path().to_vec();
                return Err(declaration(&service.parent_file(), &path, what));
            }
        }
        Ok(Self { commands, queries })
    }

    /// Refuses two methods that would be one step, which has no other name: those of one name in two command services.
    pub(crate) fn check_steps(&self) -> Result<(), Error> {
        let mut taken = HashMap::new();
        for service in &self.commands {
            for method in service.methods.iter().filter(|method| !method.by_hand) {
                let Some(other) = taken.insert(names::step(&method.name), &service.name) else { continue };
                let what = format!("{other} has one, too, and a saga's step is named by its method alone");
                return Err(method_error(&method.descriptor, &what));
            }
        }
        Ok(())
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
            function: names::value(descriptor.name()),
            request: message(&descriptor, &descriptor.input())?,
            response: message(&descriptor, &descriptor.output())?,
            comment: comment(&descriptor.parent_service().parent_file(), descriptor.path()),
            streams: descriptor.is_server_streaming(),
            compensates: None,
            compensated_by: None,
            by_hand: false,
            aggregates: Vec::new(),
            descriptor: descriptor.clone(),
        };
        read(pool, &descriptor, &mut method)?;
        methods.push(method);
    }
    let package = service.package_name();
    Ok(Service {
        stem: names::item(stem),
        name: service.name().to_owned(),
        full_name: service.full_name().to_owned(),
        peer: names::peer(package).to_owned(),
        server: names::server(package, service.name()),
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
    let is_string = |field: &FieldDescriptor| {
        matches!(field.kind(), Kind::String) && !field.is_list() && !field.supports_presence()
    };
    if !descriptor.input().get_field_by_name("request_id").is_some_and(|field| is_string(&field)) {
        return wrong(&format!("{} has no `string request_id`: a command is keyed by it", descriptor.input().name()));
    }
    let Some(Value::Message(options)) = command_options(pool, descriptor) else {
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
        if !kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
            return wrong(&format!("the kind {kind:?} must be of a-z, 0-9 and '_'"));
        }
        if kind == "saga" || kind.starts_with("saga_") {
            return wrong(&format!("the kind {kind} is taken: sagas are kept under it"));
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

fn read_query(pool: &DescriptorPool, descriptor: &MethodDescriptor, _: &mut Method) -> Result<(), Error> {
    require_level(descriptor, IdempotencyLevel::NoSideEffects, "NO_SIDE_EFFECTS", "a query")?;
    if command_options(pool, descriptor).is_some() {
        return Err(method_error(descriptor, "a query has no `option (libs.v1.command)`"));
    }
    if descriptor.is_client_streaming() {
        return Err(method_error(descriptor, "a query takes one message"));
    }
    Ok(())
}

fn command_options(pool: &DescriptorPool, descriptor: &MethodDescriptor) -> Option<Value> {
    let extension = pool.get_extension_by_name("libs.v1.command")?;
    let options = descriptor.options();
    options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
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
            // prost makes a plain Rust value of a wrapper, and no other of them holds an id.
            (Kind::Message(next), false) if next.package_name() == "google.protobuf" => {
                let what = format!("`{name}` in `{field}` is a {}: an id is in a message of yours", next.full_name());
                return Err(wrong(&what));
            }
            (Kind::Message(next), false) => {
                message = next;
                if many { Shape::Messages } else { Shape::Message }
            }
            (_, true) => return Err(wrong(&format!("`{field}` is not a string: ids are"))),
            (_, false) => return Err(wrong(&format!("`{name}` in `{field}` is not a message"))),
        };
        if found.is_map() || found.containing_oneof().is_some_and(|of| !of.is_synthetic()) {
            return Err(wrong(&format!("`{name}` in `{field}` is in a map or a oneof: an id always has its place")));
        }
        if shape == Shape::Id && found.supports_presence() {
            return Err(wrong(&format!("`{field}` is optional: an id always is there")));
        }
        path.push(Segment { field: names::value(name), shape });
    }
    Ok(path)
}

/// Finds out which method undoes which: both sides of a pair are to know.
fn link_compensations(descriptor: &ServiceDescriptor, service: &mut Service) -> Result<(), Error> {
    for (at, method) in descriptor.methods().enumerate() {
        let Some(action) = service.methods[at].compensates.clone() else { continue };
        let (undo, by_hand) = (service.methods[at].name.clone(), service.methods[at].by_hand);
        let takes_its_place =
            |other: &Method| other.compensates.as_ref() == Some(&action) && !is_deprecated(&other.descriptor);
        // Sagas that began with this pair go on with it, and new ones with the other.
        let is_former = is_deprecated(&method) && service.methods.iter().any(takes_its_place);
        let wrong = |what: String| Err(method_error(&method, &what));
        let Some(undone) = service.methods.iter_mut().find(|method| method.name == action) else {
            return wrong(format!("{undo} compensates {action}, which {} doesn't have", service.name));
        };
        if undone.name == undo {
            return wrong(format!("{undo} compensates itself: done twice is not undone"));
        }
        if let Some(other) = undone.compensated_by.as_ref().filter(|_| !is_former) {
            return wrong(format!("{undo} compensates {action}, which {other} does already"));
        }
        if undone.by_hand || by_hand {
            return wrong(format!("{undo} compensates {action}: neither of a pair can be `by_hand`"));
        }
        if !is_former {
            undone.compensated_by = Some(undo);
        }
    }
    Ok(())
}

fn is_deprecated(method: &MethodDescriptor) -> bool {
    method.method_descriptor_proto().options.as_ref().is_some_and(|options| options.deprecated())
}

/// Refuses methods whose decisions, or what goes before them, would have one name.
fn check_names(service: &Service) -> Result<(), Error> {
    let mut taken = HashMap::new();
    for method in &service.methods {
        let prefixes = if method.by_hand { &[""][..] } else { &["", "check_", "prepare_", "beside_"] };
        for prefix in prefixes {
            let name = format!("{prefix}{}", method.snake);
            if let Some(other) = taken.insert(name.clone(), &method.name) {
                let what = format!("the function `{name}` would be generated for {other}, too: take another name");
                return Err(method_error(&method.descriptor, &what));
            }
        }
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

fn message(descriptor: &MethodDescriptor, message: &MessageDescriptor) -> Result<String, Error> {
    names::message(message).ok_or_else(|| {
        let what = format!("{} is not a message of yours: give it one that holds it", message.full_name());
        method_error(descriptor, &what)
    })
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
