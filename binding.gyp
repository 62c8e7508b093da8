# The native addon by node-gyp, for machines without CMake. The sources are listed once, in native/sources.json. Left out of the
# published package, where npm would run node-gyp on its own because of it.
{
  "variables": {
    "nvcc%": "<!(node scripts/sources.mjs nvcc)",
  },
  "target_defaults": {
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["-std=c++17", "-fexceptions", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fPIC"],
    "defines": ["NAPI_VERSION=9", "NODE_ADDON_API_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED", "SEPCONV_VERSION=\"<!(node scripts/sources.mjs version)\""],
    "include_dirs": ["<!(node scripts/sources.mjs napi)"],
    "xcode_settings": {"CLANG_CXX_LANGUAGE_STANDARD": "c++17", "GCC_ENABLE_CPP_EXCEPTIONS": "YES", "MACOSX_DEPLOYMENT_TARGET": "11.0"},
  },
  "targets": [
    {
      "target_name": "sepconv_scalar",
      "type": "static_library",
      "sources": ["<!@(node scripts/sources.mjs isa scalar)"],
      "cflags_cc": ["<!@(node scripts/sources.mjs flags scalar)"],
      "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<!@(node scripts/sources.mjs flags scalar)"]},
    },
    {
      "target_name": "sepconv",
      "sources": ["<!@(node scripts/sources.mjs common)"],
      "dependencies": ["sepconv_scalar"],
      "conditions": [
        ["target_arch=='x64'", {"dependencies": ["sepconv_avx2", "sepconv_avx512", "sepconv_avx512bf16"]}],
        ["target_arch=='arm64'", {"dependencies": ["sepconv_neon"]}],
        ["OS=='linux'", {"ldflags": ["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections"], "libraries": ["-lpthread", "-ldl"]}],
        ["nvcc==''", {"sources": ["<!@(node scripts/sources.mjs withoutCuda)"]}],
        ["nvcc!=''", {
          "sources": ["<!@(node scripts/sources.mjs cuda)"],
          "include_dirs": ["<!(node scripts/sources.mjs cuda-include)"],
          "rules": [{
            "rule_name": "nvcc",
            "extension": "cu",
            "inputs": ["<!@(node scripts/sources.mjs cudaHeaders)"],
            "outputs": ["<(INTERMEDIATE_DIR)/<(RULE_INPUT_ROOT).cu.o"],
            "process_outputs_as_sources": 1,
            "message": "nvcc <(RULE_INPUT_PATH)",
            "action": ["<(nvcc)", "-c", "-std=c++17", "-O3", "-DNDEBUG", "<!@(node scripts/sources.mjs gencode)", "-Xcompiler", "-fPIC,-fvisibility=hidden",
                       "-cudart", "static", "<(RULE_INPUT_PATH)", "-o", "<(INTERMEDIATE_DIR)/<(RULE_INPUT_ROOT).cu.o"],
          }],
          "libraries": ["<!(node scripts/sources.mjs cudart)", "-ldl", "-lrt"],
        }],
      ],
    },
  ],
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {
          "target_name": "sepconv_avx2",
          "type": "static_library",
          "sources": ["<!@(node scripts/sources.mjs isa avx2)"],
          "cflags_cc": ["<!@(node scripts/sources.mjs flags avx2)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<!@(node scripts/sources.mjs flags avx2)"]},
        },
        {
          "target_name": "sepconv_avx512",
          "type": "static_library",
          "sources": ["<!@(node scripts/sources.mjs isa avx512)"],
          "cflags_cc": ["<!@(node scripts/sources.mjs flags avx512)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<!@(node scripts/sources.mjs flags avx512)"]},
        },
        {
          "target_name": "sepconv_avx512bf16",
          "type": "static_library",
          "sources": ["<!@(node scripts/sources.mjs isa avx512bf16)"],
          "cflags_cc": ["<!@(node scripts/sources.mjs flags avx512bf16)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<!@(node scripts/sources.mjs flags avx512bf16)"]},
        },
      ],
    }],
    ["target_arch=='arm64'", {
      "targets": [
        {
          "target_name": "sepconv_neon",
          "type": "static_library",
          "sources": ["<!@(node scripts/sources.mjs isa neon)"],
          "cflags_cc": ["<!@(node scripts/sources.mjs flags neon)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<!@(node scripts/sources.mjs flags neon)"]},
        },
      ],
    }],
  ],
}
