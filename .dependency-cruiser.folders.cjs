// No folder of a package imports another in a circle. What stands in the root of a package is beneath or above all its folders.
const { options } = require("./.dependency-cruiser.cjs");

/** @type {import("dependency-cruiser").IConfiguration} */
module.exports = {
  forbidden: [
    {
      name: "no-folder-circles",
      severity: "error",
      scope: "folder",
      from: { path: "/src/" },
      to: { circular: true, viaOnly: { path: "/src/" } },
    },
  ],
  // Tests beside the sources may look wherever they like.
  options: { ...options, exclude: { path: "/golden/|/generated/|\\.test\\.ts$" } },
};
