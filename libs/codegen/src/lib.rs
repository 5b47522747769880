//! Build-time: command and query surfaces and saga steps, from the contracts alone.
//!
//! A service's `build.rs` names its package:
//!
//! ```no_run
//! codegen::Contracts::load("../../proto")?.surfaces("inventory.v1")?.write()?;
//! # Ok::<(), codegen::Error>(())
//! ```
//!
//! and its `surface.rs` includes `$OUT_DIR/inventory.v1.surface.rs`. What comes out is plain Rust: per command service a trait with
//! one `check` and one decision a command, and a tonic server over it; per query service a trait whose methods are handed the
//! read side only, and a tonic server over it. `steps` writes the typed operations that a saga in another service is made of.
//!
//! A wrong declaration is an error that points at the contract's file and line.

mod command;
mod contract;
mod docs;
mod names;
mod query;
mod steps;

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use prost_reflect::DescriptorPool;

use self::contract::Package;

/// Why nothing was generated. A build script that returns it says so as a person reads it, the contract's file and line first.
#[derive(thiserror::Error)]
pub enum Error {
    /// A contract doesn't compile.
    #[error("{0}")]
    Compile(#[from] Box<protox::Error>),
    /// A contract compiles and declares what can't be generated.
    #[error("{file}:{line}: {what}")]
    Declaration {
        /// The contract, from the folder of contracts on, such as `proto/inventory/v1/command.proto`.
        file: String,
        /// The line, from 1.
        line: i32,
        /// What is wrong and what would be right.
        what: String,
    },
    /// There is no such package.
    #[error("no package {0} in the contracts")]
    NoPackage(String),
    /// The package is there, and nothing in it can be generated from.
    #[error("package {0} has no service whose name ends in CommandService or QueryService")]
    NoService(String),
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compile(error) => fmt::Debug::fmt(error, f),
            error => fmt::Display::fmt(error, f),
        }
    }
}

impl Error {
    /// The same, its contract's name as it is in this folder.
    fn below(self, folder: &str) -> Self {
        match self {
            Self::Declaration { file, line, what } => {
                Self::Declaration { file: format!("{folder}/{file}"), line, what }
            }
            error => error,
        }
    }
}

/// The compiled contracts, and what was asked of them so far.
#[derive(Debug)]
pub struct Contracts {
    folder: String,
    pool: DescriptorPool,
    files: Vec<(String, String)>,
}

impl Contracts {
    /// Compiles every contract below a folder.
    ///
    /// # Errors
    /// When one doesn't compile or can't be read.
    #[expect(clippy::print_stdout, reason = "how a build script talks to cargo")]
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut names = Vec::new();
        find(folder, folder, &mut names)?;
        names.sort();
        let compile = || -> Result<DescriptorPool, protox::Error> {
            let mut compiler = protox::Compiler::new([folder])?;
            compiler.include_source_info(true).include_imports(true).open_files(&names)?;
            Ok(compiler.descriptor_pool())
        };
        let name = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self { folder: name, pool: compile().map_err(Box::new)?, files: Vec::new() })
    }

    /// Generates the surfaces of a package: its command service and its query service.
    ///
    /// # Errors
    /// When the package isn't there or a method is declared wrongly.
    pub fn surfaces(mut self, package: &str) -> Result<Self, Error> {
        let contract = self.package(package)?;
        let mut text = format!("// Generated from {package}; every build makes it anew.\n\n");
        for service in &contract.commands {
            text.push_str(&command::surface(service));
        }
        for service in &contract.queries {
            text.push_str(&query::surface(service));
        }
        self.files.push((format!("{package}.surface.rs"), text));
        Ok(self)
    }

    /// Generates the saga operations of a package: what a saga in another service can use as steps.
    ///
    /// # Errors
    /// When the package isn't there or a method is declared wrongly.
    pub fn steps(mut self, package: &str) -> Result<Self, Error> {
        let contract = self.package(package)?;
        contract.check_steps().map_err(|error| error.below(&self.folder))?;
        let mut text = format!("// Generated from {package}; every build makes it anew.\n\n");
        for service in &contract.commands {
            text.push_str(&steps::operations(service));
        }
        self.files.push((format!("{package}.steps.rs"), text));
        Ok(self)
    }

    fn package(&self, package: &str) -> Result<Package, Error> {
        Package::read(&self.pool, package).map_err(|error| error.below(&self.folder))
    }

    /// Writes what was generated into cargo's `OUT_DIR`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(self) -> Result<(), Error> {
        let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
        for (name, text) in self.files {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|source| Error::File { path, source })?;
        }
        Ok(())
    }

    /// What was generated, as (file name, text).
    #[must_use]
    pub fn generated(&self) -> &[(String, String)] {
        &self.files
    }
}

fn find(root: &Path, folder: &Path, names: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            find(root, &path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "proto")
            && let Ok(name) = path.strip_prefix(root)
        {
            names.push(name.to_owned());
        }
    }
    Ok(())
}
