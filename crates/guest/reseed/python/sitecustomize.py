"""Imported by Python before the program: what was drawn ahead is drawn anew in a clone.

OpenSSL's own generators are the preloaded library's part (preload.rs); ``os.urandom``, ``secrets`` and
``uuid4`` ask the kernel. What is left is the Mersenne twister: every ``random.Random`` that the program did
not seed itself, the hidden one of the module and the one of ``tempfile`` among them, is seeded when the
generation is another. Every draw compares it, so there is no moment in which a clone draws an old number.

A first draw by the program maps the file ``drawn``: what it drew, clones would share.

Not covered: generators of extensions that are neither OpenSSL's nor the kernel's (numpy's, those of Rust's
``rand``), what an extension itself drew from the kernel, and the seeds of hash tables.
"""

import sys


def _hook():
    import mmap
    import os

    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    own = os.path.join(folder, "python")
    _restore(os.environ, "PYTHONPATH", own)
    _restore(os.environ, "LD_PRELOAD", os.path.join(folder, "preload.so"))
    sys.path[:] = [path for path in sys.path if path != own]

    mapped = {}

    def map_file(name):
        if name in mapped:
            return
        file = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            options = {"trackfd": False} if sys.version_info >= (3, 13) else {}
            mapped[name] = mmap.mmap(file, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, **options)
        finally:
            os.close(file)

    try:
        map_file("generation")
    except OSError:
        return
    page = memoryview(mapped["generation"]).cast("I")
    base = page[0]

    def draw():
        if page[0] == base:
            map_file("drawn")

    _replace_kernel(os, draw)
    patches = {
        "random": lambda module: _replace_random(module, page, draw),
        "ssl": lambda module: _replace_ssl(module, draw, map_file),
        "uuid": lambda module: _replace_uuid(module, draw),
        "mcp.server.request_state": lambda module: _replace_mcp(module, page),
    }
    sys.meta_path.insert(0, _Finder(patches, map_file))
    for name, patch in patches.items():
        if name in sys.modules:
            patch(sys.modules[name])
    map_file("python-hook")


def _restore(environment, name, own):
    """Programs that the server starts are none of the template: they find what was configured."""
    value = environment.get(name, "")
    if value == own:
        del environment[name]
    elif value.startswith(own + ":"):
        environment[name] = value[len(own) + 1 :]


class _Finder:
    """Patches modules when they are imported, since most programs need few of them."""

    def __init__(self, patches, map_file):
        self.patches = patches
        self.map_file = map_file

    def find_spec(self, name, path=None, target=None):
        patch = self.patches.get(name)
        if patch is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        try:
            original = loader.exec_module

            def exec_module(module):
                del loader.exec_module
                original(module)
                patch(module)

            if isinstance(loader, type):
                raise TypeError("one loader of many modules")
            loader.exec_module = exec_module
        except (AttributeError, TypeError):
            # Another kind of loader than the standard library's: as unsafe as a number that was drawn.
            self.map_file("drawn")
        return spec


def _noting(function, draw):
    """The same function, that notes that the program draws."""

    def noting(*args, **kwargs):
        draw()
        return function(*args, **kwargs)

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(noting, name, getattr(function, name, None))
    noting.__wrapped__ = function
    return noting


def _replace_kernel(os, draw):
    # What these draw when they are imported never leaves the process and its children: a key between them,
    # and names of entries in a dictionary.
    exempt = {"multiprocessing.process", "opentelemetry.context"}
    between = {"random", "secrets", "uuid"}

    def draw_by_program():
        frame = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__") in between:
            frame = frame.f_back
        if frame is None or frame.f_globals.get("__name__") not in exempt:
            draw()

    replaced = {}
    for name in ("urandom", "getrandom"):
        if hasattr(os, name):
            original = getattr(os, name)
            replaced[id(original)] = _noting(original, draw_by_program)
    # Modules that were imported before have their own names for them.
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in replaced:
                setattr(module, name, replaced[id(value)])


def _replace_ssl(ssl, draw, map_file):
    # By this draw the library finds OpenSSL; that it did is what the agent looks for.
    ssl.RAND_bytes(1)
    map_file("ssl")
    for name in ("RAND_bytes", "RAND_pseudo_bytes"):
        if hasattr(ssl, name):
            setattr(ssl, name, _noting(getattr(ssl, name), draw))


def _replace_uuid(uuid, draw):
    # They remember a node and a clock sequence that they drew.
    for name in ("getnode", "uuid1", "uuid6"):
        if hasattr(uuid, name):
            setattr(uuid, name, _noting(getattr(uuid, name), draw))


def _replace_mcp(module, page):
    """The Python SDK of MCP gives each server a key for the state that it leaves with its clients. Here it is
    drawn when it is first used, and anew in a clone."""
    import os

    class EphemeralCodec(module.AESGCMRequestStateCodec):
        def __init__(self):
            self._drawn_in = -1

        def _renew(self):
            if self._drawn_in != page[0]:
                super().__init__([os.urandom(32)])
                self._drawn_in = page[0]

        def seal(self, payload):
            self._renew()
            return super().seal(payload)

        def unseal(self, token):
            self._renew()
            return super().unseal(token)

    def ephemeral(cls, *, ttl=600.0, audience=None):
        return cls(codec=EphemeralCodec(), ttl=ttl, audience=audience)

    ephemeral.__doc__ = module.RequestStateSecurity.ephemeral.__doc__
    module.RequestStateSecurity.ephemeral = classmethod(ephemeral)


def _replace_random(module, page, draw):
    import os

    Random = module.Random
    base_random, base_getrandbits, base_gauss = Random.random, Random.getrandbits, Random.gauss
    base_seed, base_setstate, base_getstate = Random.seed, Random.setstate, Random.getstate

    def renew(self):
        if self._seeded_in is None:
            return
        draw()
        base_seed(self)
        self._seeded_in = page[0]

    def random(self):
        if self._seeded_in != page[0]:
            renew(self)
        return base_random(self)

    def getrandbits(self, k, /):
        if self._seeded_in != page[0]:
            renew(self)
        return base_getrandbits(self, k)

    def gauss(self, mu=0.0, sigma=1.0):
        # It keeps every second number for the next call.
        if self._seeded_in != page[0]:
            renew(self)
        return base_gauss(self, mu, sigma)

    def seed(self, a=None, version=2):
        base_seed(self, a, version)
        # Seeded by the program: repeating is what it asked for.
        self._seeded_in = -1 if a is None else None

    def getstate(self):
        if self._seeded_in != page[0]:
            renew(self)
        return base_getstate(self)

    def setstate(self, state):
        base_setstate(self, state)
        self._seeded_in = None

    Random._seeded_in = -1
    for function, original in (
        (random, base_random),
        (getrandbits, base_getrandbits),
        (gauss, base_gauss),
        (seed, base_seed),
        (getstate, base_getstate),
        (setstate, base_setstate),
    ):
        function.__doc__ = original.__doc__
        function.__qualname__ = "Random." + function.__name__
        function.__module__ = module.__name__
        setattr(Random, function.__name__, function)
        setattr(module, function.__name__, getattr(module._inst, function.__name__))
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=module._inst.seed)


def _chain():
    """Runs the ``sitecustomize`` that would have been imported without this one."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    sys.path_importer_cache.pop(__path, None)
    spec = PathFinder.find_spec("sitecustomize")
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


__path = __file__.rpartition("/")[0]
try:
    _hook()
except Exception:
    # Not in effect, which the agent sees; the program is to run all the same.
    pass
_chain()
