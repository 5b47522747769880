//! Contracts whose names are awkward in Rust. That what is generated from them compiles is the test.

/// What prost and tonic make of them.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    pub mod acme {
        pub mod r#type {
            pub mod v1 {
                tonic::include_proto!("acme.r#type.v1");
            }
        }
    }
}

/// The surfaces over it.
pub mod surface {
    use crate::proto;

    include!(concat!(env!("OUT_DIR"), "/acme.type.v1.surface.rs"));
}

/// The steps that sagas of others are made of.
pub mod steps {
    use crate::proto;

    include!(concat!(env!("OUT_DIR"), "/acme.type.v1.steps.rs"));
}

#[cfg(test)]
mod tests {
    use libs::saga::{Compensated, Operation};

    use super::steps::{Move, Return, Self_, r#loop};

    #[test]
    fn a_step_calls_the_method_that_the_contract_names() {
        fn undone_by<O: Compensated<Compensation = U>, U: Operation>(_: O, _: U) -> (&'static str, &'static str) {
            (O::PATH, U::PATH)
        }
        let paths = undone_by(Move, Return);
        assert_eq!(paths, ("/acme.type.v1.SKUCommandService/Move", "/acme.type.v1.SKUCommandService/Return"));
        assert_eq!(Move::PEER, "type");
        let paths = undone_by(r#loop, Self_);
        assert_eq!(paths, ("/acme.type.v1.SKUCommandService/loop", "/acme.type.v1.SKUCommandService/Self"));
    }
}
