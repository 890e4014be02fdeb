"""The C# compiler as a program: Microsoft's Roslyn, which is a library, called through pythonnet.

    python csharp_compiler.py ROOT ROSLYN ARGUMENT...

ROOT: the folder of `dotnet`, a runtime of .NET Core 3.1, which is the one that is compiled for.
ROSLYN: the folder with Microsoft.CodeAnalysis.CSharp.dll and what it needs.
ARGUMENT: those of csc. Its own diagnostics go to stdout; the exit code is 1 if one is an error.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pythonnet
from clr_loader import get_coreclr

_NEEDED = (  # in the order in which they need each other
    "System.Runtime.CompilerServices.Unsafe",
    "System.Collections.Immutable",
    "System.Reflection.Metadata",
    "Microsoft.CodeAnalysis",
    "Microsoft.CodeAnalysis.CSharp",
)


def main(root: str, roslyn: str, *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "compiler.runtimeconfig.json"
        framework = {"name": "Microsoft.NETCore.App", "version": "3.1.0"}
        properties = {
            "System.Globalization.Invariant": True,
            # A compiler that runs for seconds is not worth being compiled well itself.
            "System.Runtime.TieredCompilation.QuickJitForLoops": True,
        }
        options = {"framework": framework, "configProperties": properties}
        config.write_text(json.dumps({"runtimeOptions": options}))
        pythonnet.load(get_coreclr(runtime_config=config, dotnet_root=root))
    # Some are newer than those of the runtime, which one context does not take beside each other.
    from System.Runtime.Loader import AssemblyLoadContext

    context = AssemblyLoadContext("roslyn", False)
    for needed in _NEEDED:
        context.LoadFromAssemblyPath(f"{roslyn}/{needed}.dll")

    from Microsoft.CodeAnalysis import (
        DiagnosticSeverity,
        FileSystemExtensions,
        MetadataReference,
        SyntaxTree,
    )
    from Microsoft.CodeAnalysis.CSharp import (
        CSharpCommandLineParser,
        CSharpCompilation,
        CSharpSyntaxTree,
    )
    from System import Array, String
    from System.Collections.Generic import List

    here = str(Path.cwd())
    parsed = CSharpCommandLineParser.Default.Parse(Array[String](arguments), here, root, None)
    trees, references = List[SyntaxTree](), List[MetadataReference]()
    for source in parsed.SourceFiles:
        text = Path(source.Path).read_text("utf-8-sig")
        trees.Add(CSharpSyntaxTree.ParseText(text, parsed.ParseOptions, source.Path))
    (shared,) = Path(root).glob("shared/Microsoft.NETCore.App/*")
    for path in (
        *shared.glob("System*.dll"),
        *shared.glob("netstandard.dll"),
        *(reference.Reference for reference in parsed.MetadataReferences),
    ):
        references.Add(MetadataReference.CreateFromFile(str(path)))
    compilation = CSharpCompilation.Create(
        parsed.CompilationName, trees, references, parsed.CompilationOptions
    )
    output = str(Path(parsed.OutputDirectory) / parsed.OutputFileName)
    # Warnings are errors by the options, not by their own severity.
    diagnostics = [*parsed.Errors, *FileSystemExtensions.Emit(compilation, output).Diagnostics]
    for one in diagnostics:
        if one.Severity != DiagnosticSeverity.Hidden:
            print(one.ToString())
    return int(any(one.Severity == DiagnosticSeverity.Error for one in diagnostics))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
