"Package metadata, read from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
name, readme = cfg["lib_name"], here / "README.md"

# The notebooks that papermill runs travel with the package, where they are: in nbs/
NOTEBOOKS = {
    f"{name}.notebooks.{chapter}": f"nbs/{chapter}" for chapter in ("experiments", "audit")
}
WEIGHTS = [f"weights/**/*.{ending}" for ending in ("safetensors", "json", "txt", "md", "png")]

setup(
    name=name,
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    url=f"https://github.com/{cfg['user']}/{cfg['repo']}",
    packages=[*find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]), *NOTEBOOKS],
    package_dir=NOTEBOOKS,
    package_data={
        name: ["py.typed", "audit/*.jinja", *WEIGHTS],
        **{
            package: [
                "*.ipynb",
                "results/*/*.csv",
                "results/*/*.json",
                "results/*/*.png",
                "reports/*/*.json",
            ]
            for package in NOTEBOOKS
        },
    },
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={
        extra: cfg[f"{extra}_requirements"].split()
        for extra in ("dev", "dask", "ray", "lpips", "onnx")
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
