//! A reader of the kernel's type information (BTF) for two questions: where in a struct is a
//! member, and what is the value of an enumerator.
//!
//! `aya_obj` keeps members to itself, and the running kernel's layout is all that is needed: no
//! CO-RE. Format: Documentation/bpf/btf.rst in the kernel's sources.

use std::collections::HashMap;

use thiserror::Error;

const MAGIC: u16 = 0xeb9f;

// enum btf_kind, include/uapi/linux/btf.h
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Why BTF can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The data isn't BTF of this machine's byte order.
    #[error("not BTF: the data doesn't begin with {MAGIC:#x} in this machine's byte order")]
    Magic,
    /// The data ends where more should come.
    #[error("truncated at byte {0}")]
    Truncated(usize),
    /// A kind of type newer than this reader; the length of what follows it isn't known.
    #[error("type {id} is of unknown kind {kind}")]
    UnknownKind {
        /// Number of the type.
        id: usize,
        /// Its kind.
        kind: u32,
    },
    /// A struct that the probes need isn't in this kernel.
    #[error("no struct {0}")]
    NoStruct(String),
    /// A member that the probes need isn't in this kernel.
    #[error("no member {member} in {path}")]
    NoMember {
        /// The member.
        member: String,
        /// Where it was looked for.
        path: String,
    },
    /// A member isn't at a whole byte, or isn't of the size that the probes read.
    #[error("{path} has {found} bytes, the probes read {expected}")]
    Size {
        /// The member.
        path: String,
        /// Its size in this kernel.
        found: u32,
        /// The size that the probes read.
        expected: u32,
    },
}

/// A parsed kernel BTF.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    data: &'a [u8],
    strings: usize,
    /// Offset of each type's record; type 0 is `void`.
    types: Vec<usize>,
    /// First struct or union of each name that was asked for.
    structs: HashMap<&'a str, u32>,
}

/// Place of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Bytes from the start of the struct.
    pub offset: u32,
    /// Bytes of the member.
    pub size: u32,
}

struct Type {
    name: u32,
    kind: u32,
    len: usize,
    kind_flag: bool,
    /// `size` or `type`, by kind.
    size_or_type: u32,
    /// Where the kind's own data begins.
    body: usize,
}

impl<'a> Btf<'a> {
    /// Parses raw BTF. Only structs of the names in `wanted` can be asked for: the kernel has tens
    /// of thousands.
    ///
    /// # Errors
    /// When the data isn't BTF, is cut short, or has kinds of types that this reader doesn't know.
    pub(super) fn parse(data: &'a [u8], wanted: &[&str]) -> Result<Self, BtfError> {
        let magic = data.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        if magic != Some(MAGIC) {
            return Err(BtfError::Magic);
        }
        let header = read_u32(data, 4)? as usize;
        let first = header + read_u32(data, 8)? as usize;
        let end = first + read_u32(data, 12)? as usize;
        let strings = header + read_u32(data, 16)? as usize;
        let mut btf = Self { data, strings, types: vec![0], structs: HashMap::new() };
        let mut at = first;
        while at < end {
            let ty = btf.type_at(at)?;
            let id = btf.types.len();
            if matches!(ty.kind, STRUCT | UNION) && ty.name != 0 {
                let name = btf.string(ty.name);
                if wanted.contains(&name) {
                    btf.structs.entry(name).or_insert(id as u32);
                }
            }
            btf.types.push(at);
            at = ty.body + body_len(&ty).ok_or(BtfError::UnknownKind { id, kind: ty.kind })?;
        }
        Ok(btf)
    }

    /// The place of a member, `path` being its names from the struct on: `f_path.dentry`. Members
    /// of anonymous structs and unions are found as in C.
    ///
    /// # Errors
    /// When the struct or a member isn't there.
    pub(super) fn field(&self, of: &str, path: &str) -> Result<Field, BtfError> {
        let mut id = *self.structs.get(of).ok_or_else(|| BtfError::NoStruct(of.into()))?;
        let mut bits = 0;
        let mut walked = format!("struct {of}");
        for name in path.split('.') {
            let (at, ty) = self
                .member(id, name)?
                .ok_or_else(|| BtfError::NoMember { member: name.into(), path: walked.clone() })?;
            bits += at;
            id = ty;
            walked = format!("{walked}.{name}");
        }
        Ok(Field { offset: bits / 8, size: self.size(id)? })
    }

    /// The value of an enumerator, in whichever enum.
    ///
    /// # Errors
    /// When the data is cut short.
    pub(super) fn enumerator(&self, name: &str) -> Result<Option<u32>, BtfError> {
        for at in self.types.iter().skip(1) {
            let ty = self.type_at(*at)?;
            if ty.kind != ENUM {
                continue;
            }
            for i in 0..ty.len {
                if self.string(read_u32(self.data, ty.body + 8 * i)?) == name {
                    return read_u32(self.data, ty.body + 8 * i + 4).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let info = read_u32(self.data, at + 4)?;
        Ok(Type {
            name: read_u32(self.data, at)?,
            kind: info >> 24 & 0x1f,
            len: (info & 0xffff) as usize,
            kind_flag: info >> 31 == 1,
            size_or_type: read_u32(self.data, at + 8)?,
            body: at + 12,
        })
    }

    fn type_of(&self, id: u32) -> Result<Type, BtfError> {
        let at = self.types.get(id as usize).copied().unwrap_or(usize::MAX - 16);
        self.type_at(at)
    }

    /// The type itself, without typedefs and qualifiers.
    fn plain(&self, mut id: u32) -> Result<Type, BtfError> {
        // A bound, because data that names itself must not hang the agent.
        for _ in 0..32 {
            let ty = self.type_of(id)?;
            if !matches!(ty.kind, TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) {
                return Ok(ty);
            }
            id = ty.size_or_type;
        }
        self.type_of(id)
    }

    fn size(&self, id: u32) -> Result<u32, BtfError> {
        let ty = self.plain(id)?;
        match ty.kind {
            PTR => Ok(8),
            ARRAY => Ok(self
                .size(read_u32(self.data, ty.body)?)?
                .saturating_mul(read_u32(self.data, ty.body + 8)?)),
            _ => Ok(ty.size_or_type),
        }
    }

    /// Bit offset and type of a member.
    fn member(&self, id: u32, name: &str) -> Result<Option<(u32, u32)>, BtfError> {
        let ty = self.plain(id)?;
        if !matches!(ty.kind, STRUCT | UNION) {
            return Ok(None);
        }
        for i in 0..ty.len {
            let at = ty.body + 12 * i;
            let member = self.string(read_u32(self.data, at)?);
            let of = read_u32(self.data, at + 4)?;
            let offset = read_u32(self.data, at + 8)?;
            // With the flag the top byte is a bitfield's width.
            let bits = if ty.kind_flag { offset & 0x00ff_ffff } else { offset };
            if member == name {
                return Ok(Some((bits, of)));
            }
            if member.is_empty()
                && let Some((inner, of)) = self.member(of, name)?
            {
                return Ok(Some((bits + inner, of)));
            }
        }
        Ok(None)
    }

    fn string(&self, offset: u32) -> &'a str {
        let bytes = self.data.get(self.strings + offset as usize..).unwrap_or_default();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        bytes.get(..end).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }
}

/// Bytes that follow a type's record.
fn body_len(ty: &Type) -> Option<usize> {
    Some(match ty.kind {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * ty.len,
        ENUM | FUNC_PROTO => 8 * ty.len,
        0..=TYPE_TAG => 0,
        _ => return None,
    })
}

fn read_u32(data: &[u8], at: usize) -> Result<u32, BtfError> {
    at.checked_add(4)
        .and_then(|end| data.get(at..end))
        .and_then(|b| b.try_into().ok())
        .map(u32::from_ne_bytes)
        .ok_or(BtfError::Truncated(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts BTF together type by type.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Builder {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.bytes());
            self.strings.push(0);
            at
        }

        fn ty(&mut self, name: &str, kind: u32, len: u32, size_or_type: u32, body: &[u32]) -> &mut Self {
            let name = self.name(name);
            for word in [name, kind << 24 | len, size_or_type].iter().chain(body) {
                self.types.extend(word.to_ne_bytes());
            }
            self
        }

        fn record(
            &mut self,
            name: &str,
            kind: u32,
            size: u32,
            flag: bool,
            members: &[(&str, u32, u32)],
        ) -> &mut Self {
            let body: Vec<u32> = members.iter().flat_map(|(n, ty, off)| [self.name(n), *ty, *off]).collect();
            let flag = u32::from(flag) << 31;
            self.ty(name, kind, members.len() as u32 | flag, size, &body)
        }

        fn build(&self) -> Vec<u8> {
            let mut data = Vec::new();
            data.extend(MAGIC.to_ne_bytes());
            data.extend([1, 0]);
            for word in [24, 0, self.types.len() as u32, self.types.len() as u32, self.strings.len() as u32] {
                data.extend(word.to_ne_bytes());
            }
            data.extend(&self.types);
            data.extend(&self.strings);
            data
        }
    }

    fn sample() -> Vec<u8> {
        let mut b = Builder::default();
        b.ty("int", INT, 0, 4, &[32]); // 1
        b.ty("", PTR, 0, 1, &[]); // 2
        b.record("path", STRUCT, 16, false, &[("mnt", 2, 0), ("dentry", 2, 64)]); // 3
        b.ty("path_t", TYPEDEF, 0, 3, &[]); // 4
        b.record("", UNION, 16, false, &[("f_path", 4, 0), ("__f_path", 4, 0)]); // 5
        b.record("file", STRUCT, 40, false, &[("f_mode", 1, 0), ("", 5, 64), ("f_op", 2, 192)]); // 6
        b.record("bits", STRUCT, 8, true, &[("low", 1, 3 << 24), ("high", 1, 8 << 24 | 32)]); // 7
        let (cpu, memory) = (b.name("cpu_cgrp_id"), b.name("memory_cgrp_id"));
        b.ty("cgroup_subsys_id", ENUM, 2, 4, &[cpu, 1, memory, 4]); // 8
        b.ty("", ARRAY, 0, 0, &[2, 1, 13]); // 9
        b.record("css_set", STRUCT, 104, false, &[("subsys", 9, 0)]); // 10
        b.build()
    }

    #[test]
    fn finds_members_through_typedefs_and_anonymous_unions() {
        let data = sample();
        let btf = Btf::parse(&data, &["file", "bits", "css_set"]).unwrap();
        assert_eq!(btf.field("file", "f_op"), Ok(Field { offset: 24, size: 8 }));
        assert_eq!(btf.field("file", "f_path.dentry"), Ok(Field { offset: 16, size: 8 }));
        assert_eq!(btf.field("bits", "high"), Ok(Field { offset: 4, size: 4 }));
        assert_eq!(btf.field("css_set", "subsys"), Ok(Field { offset: 0, size: 104 }));
    }

    #[test]
    fn finds_enumerators() {
        let data = sample();
        let btf = Btf::parse(&data, &[]).unwrap();
        assert_eq!(btf.enumerator("memory_cgrp_id"), Ok(Some(4)));
        assert_eq!(btf.enumerator("rdma_cgrp_id"), Ok(None));
    }

    #[test]
    fn what_is_missing_is_named() {
        let data = sample();
        let btf = Btf::parse(&data, &["file"]).unwrap();
        let error = btf.field("file", "f_path.nothing").unwrap_err();
        assert_eq!(error.to_string(), "no member nothing in struct file.f_path");
        assert_eq!(btf.field("inode", "i_sb"), Err(BtfError::NoStruct("inode".into())));
    }

    #[test]
    fn bad_data_is_an_error_never_a_panic() {
        assert_eq!(Btf::parse(b"", &[]).unwrap_err(), BtfError::Magic);
        assert_eq!(Btf::parse(b"not btf at all", &[]).unwrap_err(), BtfError::Magic);
        let data = sample();
        for len in 2..data.len() {
            let cut = data.get(..len).unwrap();
            if let Ok(btf) = Btf::parse(cut, &["file", "css_set"]) {
                let _ = btf.field("file", "f_path.dentry");
                let _ = btf.field("css_set", "subsys");
                let _ = btf.enumerator("memory_cgrp_id");
            }
        }
        // Every byte of the types in turn set to the worst.
        for at in 24..data.len() {
            let mut bad = data.clone();
            *bad.get_mut(at).unwrap() = 0xff;
            if let Ok(btf) = Btf::parse(&bad, &["file", "css_set"]) {
                let _ = btf.field("file", "f_path.dentry");
                let _ = btf.field("css_set", "subsys");
                let _ = btf.enumerator("memory_cgrp_id");
            }
        }
    }

    #[test]
    fn reads_the_running_kernel() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return; // a kernel without BTF: nothing to compare with
        };
        let btf = Btf::parse(&data, &["task_struct", "inode"]).unwrap();
        assert_eq!(btf.field("task_struct", "tgid").unwrap().size, 4);
        assert_eq!(btf.field("inode", "i_mode").unwrap().size, 2);
    }
}
