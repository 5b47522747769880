//! Compiles every contract with protox: no protoc to install.

use std::{
    env,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    // All of this folder, as a new package is a new folder.
    println!("cargo::rerun-if-changed=.");
    let mut contracts = Vec::new();
    find(Path::new("."), &mut contracts)?;
    contracts.sort();
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_files(contracts)?;
    // Encoded by protox itself: a prost-types descriptor would drop our own method options.
    let encoded = compiler.encode_file_descriptor_set();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), &encoded)?;
    let descriptors = protox::prost_reflect::prost_types::FileDescriptorSet::decode(encoded.as_slice())?;
    // Absent in every saga under way, or in most: there may be a hundred thousand in memory.
    let boxed = [".saga.v1.SagaRecord.saga", ".saga.v1.StepRecord.refusal"];
    let settings = tonic_prost_build::configure()
        .bytes(".")
        // Maps in order: a command is known again by a hash of its bytes, which must be the same in whatever process encodes it.
        .btree_map(".")
        // A module a package, one in the other as their names are.
        .include_file("packages.rs");
    let settings = boxed.into_iter().fold(settings, |settings, path| settings.boxed(path));
    settings.compile_fds(descriptors)?;
    Ok(())
}

/// Every contract below a folder.
fn find(folder: &Path, contracts: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, contracts)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            contracts.push(path);
        }
    }
    Ok(())
}
