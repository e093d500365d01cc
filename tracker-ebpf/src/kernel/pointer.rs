//! Typed addresses in the kernel's memory, and how they are read.
//!
//! A `struct` of the kernel is an empty type here, and a member knows what it is a member of: to
//! read one through a pointer to another struct doesn't compile.

use core::{marker::PhantomData, mem::size_of, ptr::read_volatile};

use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_kernel, bpf_probe_read_user},
};

/// Types of which any bytes are a value.
///
/// # Safety
/// The type is an integer, or a pointer that is never used as a Rust reference.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),+) => { $(
        // SAFETY: an integer, or an address.
        unsafe impl Plain for $type {}
    )+ };
}

plain!(u8, u16, i32, u32, u64, *const u8);

/// A pointer to `S`, as it is in the kernel's memory.
#[repr(transparent)]
pub(crate) struct Pointer<S>(*const u8, PhantomData<*const S>);

/// How the kernel's memory is read. A read that fails gives zeroes, as one through a null pointer
/// does.
pub(crate) trait Access {
    /// Reads what is at an address.
    fn load<T: Plain>(address: *const T) -> T;
}

/// A plain load through a pointer whose BTF type the verifier knows: in iterators.
pub(crate) struct Direct;

impl Access for Direct {
    #[inline(always)]
    fn load<T: Plain>(address: *const T) -> T {
        // SAFETY: the verifier refuses a program with a load that isn't inside of the pointer's BTF
        // type, and the kernel makes 0 of a load that faults.
        unsafe { read_volatile(address) }
    }
}

/// `bpf_probe_read_kernel`, for addresses of which the verifier knows nothing: in all other
/// programs.
pub(crate) struct Probe;

impl Access for Probe {
    #[inline(always)]
    fn load<T: Plain>(address: *const T) -> T {
        // SAFETY: the helper checks the address, and zeroes are a value of a plain type.
        unsafe { bpf_probe_read_kernel(address).unwrap_or(core::mem::zeroed()) }
    }
}

/// Reads the memory of the current process. A page that isn't there gives zeroes.
#[inline(always)]
pub(crate) fn user<T: Plain>(address: u64) -> T {
    // SAFETY: the helper checks the address, and zeroes are a value of a plain type.
    unsafe { bpf_probe_read_user(address as *const T).unwrap_or(core::mem::zeroed()) }
}

/// The address of an `S` in the kernel's memory, which may be null, or no longer valid. `R` says
/// how it is read.
#[repr(transparent)]
pub(crate) struct Ptr<S, R = Probe>(*const u8, PhantomData<(*const S, R)>);

impl<S, R> Clone for Ptr<S, R> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, R> Copy for Ptr<S, R> {}

impl<S> Ptr<S> {
    /// The `S` at an address.
    #[inline(always)]
    pub(crate) fn new(address: u64) -> Self {
        Self(address as *const u8, PhantomData)
    }
}

impl<S, R> Ptr<S, R> {
    #[inline(always)]
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The pointer, which keeps its type for the verifier.
    #[inline(always)]
    pub(crate) fn as_ptr(self) -> *const u8 {
        self.0
    }

    /// The address.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    /// The same address, where something else is known to be.
    #[inline(always)]
    pub(crate) fn cast<T>(self) -> Ptr<T, R> {
        Ptr(self.0, PhantomData)
    }

    /// The same address, from which probe reads are made: what they give is a number to the
    /// verifier.
    #[inline(always)]
    pub(crate) fn probed(self) -> Ptr<S> {
        Ptr(self.0, PhantomData)
    }
}

impl<S, R: Access> Ptr<S, R> {
    /// Where a member is.
    #[inline(always)]
    pub(crate) fn member<T>(self, member: &Member<S, T>) -> Ptr<T, R> {
        Ptr(self.0.wrapping_add(member.0.load() as usize), PhantomData)
    }

    /// The value of a member.
    #[inline(always)]
    pub(crate) fn read<T: Plain>(self, member: &Member<S, T>) -> T {
        self.member(member).load()
    }

    /// Where a member points to.
    #[inline(always)]
    pub(crate) fn follow<T>(self, member: &Member<S, Pointer<T>>) -> Ptr<T, R> {
        self.member(member).target()
    }

    /// An element of the array whose first this is.
    #[inline(always)]
    pub(crate) fn element(self, index: u64) -> Self {
        Self(self.0.wrapping_add(index as usize * size_of::<S>()), PhantomData)
    }
}

impl<T: Plain, R: Access> Ptr<T, R> {
    /// The value.
    #[inline(always)]
    pub(crate) fn load(self) -> T {
        R::load(self.0.cast())
    }
}

impl<S, R: Access> Ptr<Pointer<S>, R> {
    /// Where the pointer at this address points to.
    #[inline(always)]
    pub(crate) fn target(self) -> Ptr<S, R> {
        Ptr(R::load(self.0.cast::<*const u8>()), PhantomData)
    }
}

/// Where a member of type `T` is in an `S`. User space writes it before it loads the programs.
#[repr(transparent)]
pub(crate) struct Member<S, T>(Global<u64>, PhantomData<fn(S) -> T>);

impl<S, T> Member<S, T> {
    /// A member of which user space hasn't said anything.
    pub(crate) const fn new() -> Self {
        Self(Global::new(0), PhantomData)
    }
}
