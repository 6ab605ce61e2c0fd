//! XDP programs and maps behind one trait.
