//! An answer in HTTP and not in gRPC, as a proxy gives it in a peer's place: it gets the gRPC status that its own stands for.

use http::{Response, StatusCode};
use tonic::Status;

use crate::breaker::layer::{code_of_http, grpc_status};

/// Has an answer with another HTTP status than 200 say so in gRPC too, unless it does. Whatever page it came with would be read as a
/// message, and be taken for an INTERNAL error.
///
/// The codes are those of gRPC's own document, `http-grpc-status-mapping.md`.
pub(super) fn in_grpc<B>(response: Response<B>) -> Response<B> {
    if response.status() == StatusCode::OK { response } else { translated(response) }
}

#[cold]
fn translated<B>(mut response: Response<B>) -> Response<B> {
    let status = response.status();
    if grpc_status(response.headers()).is_none() {
        let message = format!("answered in HTTP and not in gRPC: {status}");
        // Its message is plain ASCII, which headers take.
        let _ = Status::new(code_of_http(status), message).add_header(response.headers_mut());
    }
    response
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn answered(status: u16, grpc: Option<&str>) -> Option<Status> {
        let mut response = Response::builder().status(status).body("<h1>no</h1>").expect("an answer");
        if let Some(code) = grpc {
            response.headers_mut().insert("grpc-status", code.parse().expect("a code"));
        }
        Status::from_header_map(in_grpc(response).headers())
    }

    #[test]
    fn each_status_is_what_grpc_says_it_is() {
        for (status, code) in [
            (400, Code::Internal),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (429, Code::Unavailable),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
            (504, Code::Unavailable),
            (500, Code::Unknown),
            (302, Code::Unknown),
        ] {
            assert_eq!(answered(status, None).map(|status| status.code()), Some(code), "{status}");
        }
    }

    #[test]
    fn what_speaks_grpc_is_left_as_it_is() {
        assert!(answered(200, None).is_none());
        assert_eq!(answered(404, Some("5")).map(|status| status.code()), Some(Code::NotFound));
    }
}
