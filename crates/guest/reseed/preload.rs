//! A library that is preloaded into Node.js and Python: it makes OpenSSL draw anew in a clone.
//!
//! OpenSSL's generators live in the memory of the process, so clones of the process would draw the same
//! numbers. They start anew when the process id is another one than at their last draw, because then the
//! process was forked; they ask for it at every draw. So this library's `getpid` tells them, and nobody else,
//! another id after each change of the *generation*: a counter in a page of shared memory, which the agent
//! increments in each clone.
//!
//! ```text
//! agent ──writes──> generation <──maps── getpid <──asks── OpenSSL: the executable's, libcrypto, an extension's
//!                        ^──────── page <── Node-API ── node.cjs
//! ```
//!
//! What the agent has to know is told by mapping files, which it sees in `/proc/PID/maps`: `openssl` when
//! OpenSSL was first answered, `node-hook` when the script is in effect, `drawn` when the program itself has drawn
//! numbers that clones would share.
//!
//! Compiled by `build.rs`, without a C library: programs of any come to load it. Everything that it needs lies
//! in the folder that it lies in; if that has no `generation`, `getpid` is what it always was.
#![no_std]

use core::arch::{asm, global_asm, naked_asm};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering::Relaxed};

const PAGE_BYTES: usize = 4096;
/// Far from the difference of any two process ids, whatever small number it is multiplied by.
const STRIDE: u32 = 0x9e37_79b1;

/// The mapped generation; null if there is none.
static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(null_mut());
/// The generation that this program was started in.
static BASE: AtomicU32 = AtomicU32::new(0);
/// The runtime has started; from now on it is the program that draws.
static STARTED: AtomicBool = AtomicBool::new(false);
static NOTED: AtomicBool = AtomicBool::new(false);

/// Who calls `getpid`.
#[derive(Clone, Copy, PartialEq)]
#[repr(usize)]
enum Caller {
    /// Somebody who wants to know it.
    Stranger = 1,
    /// OpenSSL in the executable, which the runtime's own start uses too.
    Runtime = 2,
    /// The system's OpenSSL, of which contexts of TLS clients draw what they never use.
    Library = 3,
    /// OpenSSL inside of an extension.
    Extension = 4,
}

/// What was found out about return addresses: the address, shifted, and the caller.
static KNOWN: [AtomicUsize; 32] = [const { AtomicUsize::new(0) }; 32];
const CALLER_BITS: u32 = 3;

#[repr(C)]
struct DlInfo {
    file: *const c_char,
    base: *const u8,
    symbol: *const c_char,
    address: *const c_void,
}

const NOTHING: DlInfo = DlInfo { file: null(), base: null(), symbol: null(), address: null() };
const RTLD_LAZY: c_int = 1;
const RTLD_NOLOAD: c_int = 4;

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

// Old C libraries have these in another library, which not every program loads: without them it has to start
// all the same.
global_asm!(".weak dlopen", ".weak dlsym", ".weak dladdr");

/// Whether the program has the dynamic linker's functions.
fn can_look_up() -> bool {
    let (open, symbol, address): (usize, usize, usize);
    // SAFETY: the loads of three entries of this object's global offset table.
    unsafe {
        asm!("mov {}, qword ptr [rip + dlopen@GOTPCREL]", "mov {}, qword ptr [rip + dlsym@GOTPCREL]",
            "mov {}, qword ptr [rip + dladdr@GOTPCREL]", out(reg) open, out(reg) symbol, out(reg) address,
            options(nostack, readonly));
    }
    ![open, symbol, address].contains(&0)
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    if !can_look_up() {
        return;
    }
    if let Some(page) = map(c"generation") {
        // SAFETY: a mapped page, which stays mapped and which nothing of this process can write to.
        BASE.store(unsafe { (*page).load(Relaxed) }, Relaxed);
        PAGE.store(page, Relaxed);
    }
}

/// `getpid(2)`, but see above.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn getpid() -> c_int {
    // The return address tells the caller; a caller that jumped here left its own caller's, which in OpenSSL
    // is another function of OpenSSL.
    naked_asm!("mov rdi, [rsp]", "jmp {}", sym answer)
}

extern "C" fn answer(return_address: usize) -> c_int {
    let pid = system_call(39, [0; 6]) as c_int;
    let page = PAGE.load(Relaxed);
    if page.is_null() {
        return pid;
    }
    let caller = known(return_address);
    if caller == Caller::Stranger {
        return pid;
    }
    // SAFETY: as in `start`.
    let clones = unsafe { (*page).load(Relaxed) }.wrapping_sub(BASE.load(Relaxed));
    let draws = match caller {
        Caller::Runtime => STARTED.load(Relaxed),
        Caller::Extension => true,
        Caller::Stranger | Caller::Library => false,
    };
    if draws && clones == 0 {
        note_drawn();
    }
    pid.wrapping_add(clones.wrapping_mul(STRIDE) as c_int)
}

fn note_drawn() {
    if !NOTED.swap(true, Relaxed) {
        map(c"drawn");
    }
}

fn known(return_address: usize) -> Caller {
    for slot in &KNOWN {
        let entry = slot.load(Relaxed);
        if entry == 0 {
            break;
        }
        if entry >> CALLER_BITS == return_address {
            return match entry & ((1 << CALLER_BITS) - 1) {
                2 => Caller::Runtime,
                3 => Caller::Library,
                4 => Caller::Extension,
                _ => Caller::Stranger,
            };
        }
    }
    let caller = identify(return_address);
    if caller != Caller::Stranger {
        map(c"openssl");
    }
    let entry = return_address << CALLER_BITS | caller as usize;
    // If all are taken it is found out anew each time.
    let _ = KNOWN.iter().any(|slot| slot.compare_exchange(0, entry, Relaxed, Relaxed).is_ok());
    caller
}

fn identify(return_address: usize) -> Caller {
    // The call is the instruction before.
    let Some(place) = look_up((return_address - 1) as *const c_void) else { return Caller::Stranger };
    // SAFETY: `place` came from the dynamic linker, whose strings live as long as the object does.
    let handle = if is_executable(&place) {
        null_mut()
    } else {
        unsafe { dlopen(place.file, RTLD_LAZY | RTLD_NOLOAD) }
    };
    let rand_bytes = symbol(handle, c"RAND_bytes");
    let exports_openssl =
        !rand_bytes.is_null() && look_up(rand_bytes).is_some_and(|at| at.base == place.base);
    if is_executable(&place) {
        // Others in the executable do want to know the process id.
        let asks = calls(return_address, symbol(null_mut(), c"openssl_get_fork_id"));
        return if exports_openssl && (asks || is_openssl(&place)) {
            Caller::Runtime
        } else {
            Caller::Stranger
        };
    }
    match exports_openssl {
        true => Caller::Library,
        // The names of OpenSSL's source files are in its error messages.
        false if contains(place.base, b"/drbg") => Caller::Extension,
        false => Caller::Stranger,
    }
}

/// Whether the instruction before an address calls a function directly.
fn calls(return_address: usize, function: *mut c_void) -> bool {
    const CALL: u8 = 0xe8;
    // SAFETY: the instruction that was executed last in the caller ends there, and is five bytes long or has
    // others before it.
    let (opcode, distance) = unsafe {
        let call = (return_address - 5) as *const u8;
        (*call, call.add(1).cast::<i32>().read_unaligned())
    };
    opcode == CALL && return_address.wrapping_add_signed(distance as isize) == function as usize
}

/// Whether a function of an executable that contains OpenSSL is one of its generators', where there is no such
/// call to go by.
fn is_openssl(place: &DlInfo) -> bool {
    if place.symbol.is_null() {
        return false;
    }
    // SAFETY: a string of the dynamic linker, which lives as long as the object does.
    let name = unsafe { CStr::from_ptr(place.symbol) }.to_bytes();
    [&b"ossl_prov_drbg_"[..], b"ossl_drbg_", b"RAND_DRBG_", b"drbg_"]
        .iter()
        .any(|start| name.starts_with(start))
}

fn is_executable(place: &DlInfo) -> bool {
    const AT_ENTRY: u64 = 9;
    let getauxval = symbol(null_mut(), c"getauxval");
    if getauxval.is_null() {
        return false;
    }
    // SAFETY: this is the type of the C libraries' `getauxval`.
    let getauxval: extern "C" fn(u64) -> u64 = unsafe { core::mem::transmute(getauxval) };
    look_up(getauxval(AT_ENTRY) as *const c_void).is_some_and(|entry| entry.base == place.base)
}

fn look_up(address: *const c_void) -> Option<DlInfo> {
    let mut info = NOTHING;
    // SAFETY: any address may be asked for; `info` is what the call fills.
    (unsafe { dladdr(address, &mut info) } != 0).then_some(info)
}

/// A symbol of an object, or of all that are global if `handle` is null (`RTLD_DEFAULT`).
fn symbol(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: `handle` is null or an object's, `name` is terminated.
    unsafe { dlsym(handle, name.as_ptr()) }
}

/// Whether the read-only data of the object at `base` contains a text; its program where the two are not
/// apart. ELF-64 object file format, "Program header".
fn contains(base: *const u8, text: &[u8]) -> bool {
    const PT_LOAD: u32 = 1;
    const EXECUTE: u32 = 1;
    const WRITE: u32 = 2;
    // SAFETY: the first segment of a loaded object holds its ELF header and its program headers; a loaded
    // segment's bytes are mapped as long as the object is, which is executing.
    unsafe {
        let read_u64 = |at: *const u8| at.cast::<u64>().read_unaligned() as usize;
        let headers = base.add(read_u64(base.add(32)));
        let count = usize::from(base.add(56).cast::<u16>().read_unaligned());
        let mut any = false;
        for wanted in [0, EXECUTE] {
            for number in 0..count {
                let header = headers.add(number * 56);
                let flags = header.add(4).cast::<u32>().read_unaligned();
                let loaded = header.cast::<u32>().read_unaligned() == PT_LOAD;
                if !loaded || flags & (WRITE | EXECUTE) != wanted {
                    continue;
                }
                any = true;
                let (start, length) = (base.add(read_u64(header.add(16))), read_u64(header.add(32)));
                if core::slice::from_raw_parts(start, length).windows(text.len()).any(|window| window == text)
                {
                    return true;
                }
            }
            if any {
                break;
            }
        }
        false
    }
}

/// Maps a file of this library's folder, for good.
fn map(name: &CStr) -> Option<*mut AtomicU32> {
    const OPEN: usize = 2;
    const MMAP: usize = 9;
    const CLOSE: usize = 3;
    const CLOSE_ON_EXEC: usize = 0o2_000_000;
    const READ: usize = 1;
    const SHARED: usize = 1;
    let own = look_up(start as *const c_void)?;
    // SAFETY: the dynamic linker's string of this object's path.
    let own = unsafe { CStr::from_ptr(own.file) }.to_bytes();
    let folder = own.iter().rposition(|&byte| byte == b'/')? + 1;
    let mut path = [0u8; 512];
    // One byte stays zero.
    let bytes = own.iter().take(folder).chain(name.to_bytes());
    if folder + name.count_bytes() >= path.len() {
        return None;
    }
    path.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
    let file = system_call(OPEN, [path.as_ptr() as usize, CLOSE_ON_EXEC, 0, 0, 0, 0]);
    if file < 0 {
        return None;
    }
    let address = system_call(MMAP, [0, PAGE_BYTES, READ, SHARED, file as usize, 0]);
    system_call(CLOSE, [file as usize, 0, 0, 0, 0, 0]);
    // The last page of addresses holds the error numbers.
    (!(-(PAGE_BYTES as isize)..0).contains(&address)).then_some(address as *mut AtomicU32)
}

fn system_call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the Linux convention of x86-64; callers pass pointers that live over the call.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// The library as an addon of Node.js: gives the script the generation's page as an `ArrayBuffer`, and a
/// function to be called when the script is in effect.
#[unsafe(no_mangle)]
pub extern "C" fn napi_register_module_v1(env: *mut c_void, exports: *mut c_void) -> *mut c_void {
    type Finalize = extern "C" fn(*mut c_void, *mut c_void, *mut c_void);
    type CreateBuffer =
        extern "C" fn(*mut c_void, *mut c_void, usize, Finalize, *mut c_void, *mut *mut c_void) -> c_int;
    type Callback = extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void;
    type CreateFunction =
        extern "C" fn(*mut c_void, *const c_char, usize, Callback, *mut c_void, *mut *mut c_void) -> c_int;
    type SetProperty = extern "C" fn(*mut c_void, *mut c_void, *const c_char, *mut c_void) -> c_int;
    extern "C" fn keep(_: *mut c_void, _: *mut c_void, _: *mut c_void) {}

    let create_buffer = symbol(null_mut(), c"napi_create_external_arraybuffer");
    let create_function = symbol(null_mut(), c"napi_create_function");
    let set_property = symbol(null_mut(), c"napi_set_named_property");
    // Each thread of JavaScript has a mapping of its own: no two buffers may have the same memory.
    let page = map(c"generation");
    let (false, false, false, Some(page)) =
        (create_buffer.is_null(), create_function.is_null(), set_property.is_null(), page)
    else {
        return exports;
    };
    // SAFETY: these are the types that Node-API, version 1, gives these functions.
    let (create_buffer, create_function, set_property) = unsafe {
        (
            core::mem::transmute::<*mut c_void, CreateBuffer>(create_buffer),
            core::mem::transmute::<*mut c_void, CreateFunction>(create_function),
            core::mem::transmute::<*mut c_void, SetProperty>(set_property),
        )
    };
    let mut value = null_mut();
    if create_buffer(env, page.cast(), PAGE_BYTES, keep, null_mut(), &mut value) == 0 {
        set_property(env, exports, c"page".as_ptr(), value);
    }
    let name = c"inEffect";
    if create_function(env, name.as_ptr(), name.count_bytes(), in_effect, null_mut(), &mut value) == 0 {
        set_property(env, exports, name.as_ptr(), value);
    }
    exports
}

extern "C" fn in_effect(_: *mut c_void, _: *mut c_void) -> *mut c_void {
    // Threads say so too; the first one counts.
    if !STARTED.swap(true, Relaxed) {
        map(c"node-hook");
    }
    // `undefined`
    null_mut()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Not reached: nothing here indexes or unwraps.
    loop {
        system_call(231, [134, 0, 0, 0, 0, 0]);
    }
}
